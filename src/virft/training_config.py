"""What all training configurations share: settings of images and prompts, defaults, and how open choices
resolve."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from virft.checkpoint import COORDINATES
from virft.errors import UserError

MIN_PIXELS = 3136
MAX_PIXELS = 401408
"""Area limits of a resized image: 4 to 512 visual tokens of 28 x 28 pixels."""

POSITIVE = sys.float_info.min
RANGES: Mapping[str, tuple[float, float]] = {
    "per_device_train_batch_size": (1, math.inf),
    "per_device_eval_batch_size": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "completions_per_forward": (1, math.inf),
    "num_iterations": (1, math.inf),
    "num_generations_eval": (1, math.inf),
    "steps_per_generation": (1, math.inf),
    "max_completion_length": (1, math.inf),
    "max_prompt_length": (1, math.inf),
    "min_pixels": (1, math.inf),
    "max_pixels": (1, math.inf),
    "remember_rows": (0, math.inf),
    "learning_rate": (0, math.inf),
    "beta": (0, math.inf),
    "epsilon": (0, math.inf),
    "epsilon_high": (0, math.inf),
    "delta": (POSITIVE, math.inf),
    "repetition_penalty": (POSITIVE, math.inf),
    "ref_model_sync_steps": (1, math.inf),
    "weight_decay": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
    "num_train_epochs": (POSITIVE, math.inf),
    "save_total_limit": (0, math.inf),
    "eval_steps": (POSITIVE, math.inf),
    "save_steps": (POSITIVE, math.inf),
    "logging_steps": (POSITIVE, math.inf),
    "temperature": (POSITIVE, math.inf),
    "top_p": (POSITIVE, 1),
    "top_k": (0, math.inf),
    "min_p": (0, 1),
    "top_entropy_quantile": (0, 1),
    "ref_model_mixup_alpha": (0, 1),
}
"""Flag -> least and greatest value, where TRL and transformers find out late or never."""


@dataclass
class TrainingConfig:
    """What the configurations of GRPO and SFT have in common, mixed in before TRL's: settings of images and
    prompts, and TRL's settings that have another default here."""

    min_pixels: int | None = field(
        default=None,
        metadata={
            "help": f"Least area of a resized image; default: the checkpoint's manifest, else {MIN_PIXELS}."
        },
    )
    max_pixels: int | None = field(
        default=None,
        metadata={"help": f"Greatest area of a resized image; default: the manifest's, else {MAX_PIXELS}."},
    )
    coordinates: str = field(
        default="auto",
        metadata={
            "help": "Space in which the model writes boxes; rows are converted to it. auto: the checkpoint "
            "manifest's, else the model family's.",
            "choices": list(COORDINATES),
        },
    )
    system_prompt: str | None = field(
        default=None,
        metadata={
            "help": "System message of rows that have none of their own in a column 'system'; default: the "
            "manifest's, else none."
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest prompt in tokens, image tokens included. Longer ones are refused, never cut."
        },
    )
    skip_long_prompts: bool = field(
        default=False, metadata={"help": "Leave rows above --max_prompt_length out and count them."}
    )
    freeze_vision: bool = field(default=False, metadata={"help": "Do not train the vision tower."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the rows."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations in the backward pass: slower, less memory."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "bfloat16 mixed precision. Default: on where the GPU has it.",
            "nargs": "?",
            "const": True,
        },
    )
    save_steps: float = field(default=100, metadata={"help": "Save a checkpoint every so many steps."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Keep this many checkpoints (the best one beside); 0 keeps all."}
    )

    def __post_init__(self) -> None:
        """Resolve what all training configurations resolve alike, then what TRL's does.

        Raises:
            UserError: settings that exclude each other, or that TRL or transformers refuse.
        """
        check_values(self)
        if self.skip_long_prompts and self.max_prompt_length is None:
            raise UserError("--skip_long_prompts needs --max_prompt_length")
        if self.eval_strategy == "no" and (self.load_best_model_at_end or self.save_strategy == "best"):
            flag = "--load_best_model_at_end" if self.load_best_model_at_end else "--save_strategy best"
            raise UserError(f"{flag} needs held-out rows: add --eval_strategy steps --eval_dataset_name ...")
        if self.bf16 is None:
            self.bf16 = default_bf16(self.fp16, self.use_cpu)
        rename_checkpointing_flag(self)
        # Else transformers puts "loss" in the place of a metric that was left open, and an evaluation that
        # answers rows has none.
        chosen, self.metric_for_best_model = self.metric_for_best_model, self.metric_for_best_model or ""
        better = self.greater_is_better
        try:
            super().__post_init__()
        except UserError:
            raise
        except ValueError as error:
            raise UserError(" ".join(str(error).split())) from error
        if not chosen:
            self.metric_for_best_model, self.greater_is_better = None, better


def check_values(args: Any) -> None:
    """Refuse values that would fail, or train something else than meant, only after the model is loaded.

    Raises:
        UserError: a number out of its range, or no JSON where JSON is meant.
    """
    for name, (least, greatest) in RANGES.items():
        value = getattr(args, name, None)
        if value is not None and not least <= value <= greatest:
            above = f" and at most {greatest:g}" if greatest < math.inf else ""
            raise UserError(f"--{name} {value:g} must be {_least(least)}{above}")
    for name, value in vars(args).items():
        if isinstance(value, str) and value.startswith("{"):
            _check_json(f"--{name}", value)
    if isinstance(args.deepspeed, str) and not args.deepspeed.startswith("{"):
        if not Path(args.deepspeed).is_file():
            raise UserError(f"--deepspeed {args.deepspeed}: no such file; see local_scripts/")
        _check_json(f"--deepspeed {args.deepspeed}", Path(args.deepspeed).read_text(encoding="utf-8"))


def _least(least: float) -> str:
    return "positive" if least == POSITIVE else f"at least {least:g}"


def _check_json(what: str, text: str) -> None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{what} is not valid JSON ({error})") from None


def default_bf16(fp16: bool, use_cpu: bool) -> bool:
    """Whether mixed precision in bfloat16 is on when nothing is said: on a GPU that has it."""
    return not fp16 and not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def rename_checkpointing_flag(args: Any) -> None:
    """Pass ``gradient_checkpointing``, the reference's name, on under the name that newer transformers
    want."""
    if not hasattr(args, "activation_checkpointing"):
        return
    if args.activation_checkpointing is None:
        args.activation_checkpointing = args.gradient_checkpointing
    if args.activation_checkpointing_kwargs is None:
        args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs
