"""Flags that training programs share, which rows and which model, and the parser of all their flags."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from trl import ModelConfig, TrlParser

from virft.errors import UserError, unknown_flag
from virft.training_config import TrainingConfig

LANGUAGE_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
VISION_LINEARS = (
    r".*visual\.blocks\..*\.(qkv|proj|fc1|fc2|gate_proj|up_proj|down_proj)|.*visual\.merger\.mlp\.(0|2)"
)
"""LoRA's modules when ``--lora_target_modules`` is not given: the language model's, and with
``--lora_vision`` the vision tower's."""


@dataclass
class RowArguments:
    """Which rows to train on."""

    dataset_name: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rows: Hub id, save_to_disk folder, .parquet, .json or .jsonl. Several are mixed: "
            "a.jsonl b, a.jsonl:0.7 b:0.3 with shares of the rows, or a YAML file that lists them."
        },
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split of a source that has splits."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split of held-out rows where --eval_dataset_name is not given."}
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Held-out rows for --eval_strategy; default: --dataset_test_split."}
    )
    image_folder: str | None = field(
        default=None, metadata={"help": "Where relative image paths start; default: beside the rows' file."}
    )


@dataclass
class ModelArguments(ModelConfig):
    """Which model, and LoRA or quantisation around it (TRL's flags)."""

    dtype: str | None = field(
        default=None,
        metadata={
            "help": "dtype of the loaded weights. Default: bfloat16 where something else keeps what is "
            "learnt in float32 or apart (DeepSpeed's master weights, LoRA), else float32.",
        },
    )
    attn_implementation: str | None = field(
        default="sdpa", metadata={"help": "sdpa, eager, or flash_attention_2 (needs the flash-attn package)."}
    )
    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "Task type that LoRA stores."})
    lora_vision: bool = field(
        default=False, metadata={"help": "Put LoRA on the vision tower's linear layers as well."}
    )

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise UserError("--load_in_8bit and --load_in_4bit exclude each other; choose one")
        super().__post_init__()
        if isinstance(self.lora_target_modules, str) and re.fullmatch(r"[\w.]+", self.lora_target_modules):
            # TRL makes a text of one name, which PEFT takes for a pattern of whole names: none would fit.
            self.lora_target_modules = [self.lora_target_modules]
        self._check_use()
        if (self.load_in_8bit or self.load_in_4bit) and not self.use_peft:
            raise UserError("--load_in_4bit and --load_in_8bit train LoRA only; add --use_peft")
        if self.lora_vision and self.lora_target_modules:
            raise UserError(
                "--lora_vision and --lora_target_modules exclude each other; name the modules once"
            )
        if self.use_peft and not self.lora_target_modules:
            vision = f"|{VISION_LINEARS}" if self.lora_vision else ""
            self.lora_target_modules = f"({LANGUAGE_LINEARS}{vision})"

    def _check_use(self) -> None:
        """Refuse flags of LoRA that would change nothing."""
        if self.use_peft:
            return
        for name, entry in self.__dataclass_fields__.items():
            if name.startswith("lora_") and getattr(self, name) != entry.default:
                raise UserError(f"--{name} without --use_peft true changes nothing; add it, or drop --{name}")


def check_held_out(rows: RowArguments, args: TrainingConfig) -> None:
    """Refuse held-out rows that nothing would look at. Raises UserError naming the flag."""
    if rows.eval_dataset_name and args.eval_strategy == "no":
        raise UserError(
            "--eval_dataset_name without --eval_strategy changes nothing; add --eval_strategy steps"
        )


def parse_flags(classes: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """The flags (and ``--config FILE.yaml`` beneath them) as one object of each class.

    Raises:
        UserError: a value that a class refuses, or a configuration file that is missing or holds unknown
            keys.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--config" in argv:
        file = dict(enumerate(argv)).get(argv.index("--config") + 1)
        if file is None or not Path(file).is_file():
            raise UserError(f"--config {file or ''}: no such file; it names a YAML file of flags")
    parser = OneSentenceParser(classes)
    parser.refuse_unknown(argv)
    try:
        return parser.parse_args_and_config(argv)
    except UserError:
        raise
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:
        raise UserError(" ".join(str(error).split())) from error


class OneSentenceParser(TrlParser):
    """TRL's parser, which says in one sentence what is wrong instead of printing all flags before it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists all flags")

    def refuse_unknown(self, argv: Sequence[str]) -> None:
        """Refuse a flag that is not there, with the nearest one that is."""
        known = [*self._option_string_actions, "--config"]
        for flag in (word.split("=")[0] for word in argv if word.startswith("--") and len(word) > 2):
            if not any(name.startswith(flag) for name in known):
                raise unknown_flag(flag, known)


def quiet_libraries() -> None:
    """Silence lines that a newcomer takes for failures; call it before anything imports DeepSpeed."""
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|trl|torch|peft|deepspeed)"
    )
    warnings.filterwarnings("ignore", message=".*pin_memory.*no accelerator is found.*")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no accelerator
