"""The modules that LoRA trains beside: their names, checked before weights load; quantised ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from virft.errors import UserError
from virft.model_files import without_weights

ADAPTED = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv2d, torch.nn.Conv3d)
"""Modules that LoRA can stand beside."""
ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer."""


def check_lora_modules(
    config: Any, targets: str | Sequence[str] | None, kept: Sequence[str] | None = None
) -> None:
    """Refuse names that are no modules of the model: PEFT finds out when all weights are loaded, or never.

    Args:
        config: the model's configuration.
        targets: ``--lora_target_modules``: a regular expression over whole names, or ends of names.
        kept: ``--lora_modules_to_save``: ends of names.

    Raises:
        UserError: naming the flag and the name, with the names that are nearest.
    """
    modules = dict(without_weights(config).named_modules())
    fit = [name for name, module in modules.items() if isinstance(module, ADAPTED)]
    if isinstance(targets, str) and targets != ALL_LINEAR:
        try:
            if not any(re.fullmatch(targets, name) for name in modules):
                raise UserError(f"--lora_target_modules {targets!r} matches no module; {_ends(fit)}")
        except re.error as error:
            raise UserError(f"--lora_target_modules {targets!r} is no regular expression ({error})") from None
        wrong = [n for n in modules if re.fullmatch(targets, n) and not isinstance(modules[n], ADAPTED)]
        if wrong:
            raise UserError(
                f"--lora_target_modules {targets!r} matches {wrong[0] or 'the model itself'}, which is no "
                f"layer that LoRA stands beside; {_ends(fit)}"
            )
    elif not isinstance(targets, str):
        for target in targets or ():
            _check_end("--lora_target_modules", target, fit, _ends(fit, target))
    for name in kept or ():
        _check_end("--lora_modules_to_save", name, modules, _ends(modules, name))


def _check_end(flag: str, wanted: str, names: Iterable[str], hint: str) -> None:
    if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
        raise UserError(f"{flag} {wanted} is no layer of this model; {hint}")


def _ends(names: Iterable[str], near: str | None = None) -> str:
    """Last words of names, the nearest ones where there are some: "did you mean q_proj?"."""
    ends = sorted({name.rsplit(".", 1)[-1] for name in names} - {""})
    ends = [end for end in ends if not end.isdigit()]
    close = difflib.get_close_matches(near, ends, 3) if near else []
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(ends)}"


def keep_trainable(model: torch.nn.Module) -> None:
    """Keep the 4-bit layers of a model on a CPU from changing into a form that only inference can use.

    Where the CPU has bfloat16 instructions, bitsandbytes lays 4-bit weights out anew at the first forward in
    evaluation mode, for a kernel without gradients, and never back: training after that would fail or, in
    layers without a bias, learn nothing behind them.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
