"""The reference model of a run that moves it (``--sync_ref_model``), in the run's checkpoints.

TRL's checkpoints hold the policy alone: a resumed run would start again from the reference it began with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

logger = logging.getLogger(__name__)

FILE = "reference.pt"


def save_reference(trainer: Any, folder: str | Path) -> None:
    """Write the reference's parameters, one after another and whole, on the first process; called by all."""
    if not _moves(trainer):
        return
    weights = {}
    for name, parameter in trainer.ref_model.named_parameters():
        with _whole(parameter):
            held = parameter.data
            held = held.full_tensor() if isinstance(held, DTensor) else held
            if trainer.accelerator.is_main_process:
                weights[name] = held.detach().cpu().clone()
    if trainer.accelerator.is_main_process:
        torch.save(weights, Path(folder) / FILE)


def load_reference(trainer: Any, folder: str | Path) -> None:
    """The inverse of :func:`save_reference`; a checkpoint without a reference is warned of."""
    if not _moves(trainer):
        return
    path = Path(folder) / FILE
    if not path.is_file():
        logger.warning(
            "%s holds no reference model: --sync_ref_model starts again from the first one", folder
        )
        return
    weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for name, parameter in trainer.ref_model.named_parameters():
        with _whole(parameter, changes=True):
            held, saved = parameter.data, weights[name]
            if isinstance(held, DTensor):
                saved = distribute_tensor(saved.to(held.device), held.device_mesh, held.placements)
            held.copy_(saved)


def _moves(trainer: Any) -> bool:
    return getattr(trainer.args, "sync_ref_model", False) and trainer.ref_model is not None


@contextmanager
def _whole(parameter: torch.nn.Parameter, changes: bool = False) -> Iterator[None]:
    """Within it a parameter that ZeRO-3 shards is whole; what the first process ``changes`` is all ranks'."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changes else None):
        yield
