"""Flags that training programs share: which rows, which model, which pixels, and what they resolve to."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, BitsAndBytesConfig, ProcessorMixin
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from virft.boxes import FAMILY_SPACE
from virft.checkpoint import COORDINATES, Manifest, model_config, read_manifest, resolve_space
from virft.errors import UserError

MIN_PIXELS = 3136
MAX_PIXELS = 401408
"""Area limits of a resized image: 4 to 512 visual tokens of 28 x 28 pixels."""

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
            "help": "dtype of the loaded weights. Default: bfloat16 where something else keeps "
            "what is learnt in "
            "float32 or apart (DeepSpeed's master weights, LoRA), else float32.",
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
        if (self.load_in_8bit or self.load_in_4bit) and not self.use_peft:
            raise UserError("--load_in_4bit and --load_in_8bit train LoRA only; add --use_peft")
        if self.lora_vision and self.lora_target_modules:
            raise UserError(
                "--lora_vision and --lora_target_modules exclude each other; name the modules once"
            )
        if self.use_peft and not self.lora_target_modules:
            vision = f"|{VISION_LINEARS}" if self.lora_vision else ""
            self.lora_target_modules = f"({LANGUAGE_LINEARS}{vision})"


@dataclass
class VisionSettings:
    """What a training configuration adds to TRL's about images and prompts. Mixed into the configurations."""

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
        default=None, metadata={"help": "System message of every prompt; default: the manifest's, else none."}
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

    def __post_init__(self) -> None:
        """Resolve what all training configurations resolve alike, then what TRL's does.

        Raises:
            UserError: settings that exclude each other, or that TRL or transformers refuse.
        """
        if self.skip_long_prompts and self.max_prompt_length is None:
            raise UserError("--skip_long_prompts needs --max_prompt_length")
        if self.save_strategy == "best" and self.eval_strategy == "no":
            raise UserError("--save_strategy best needs held-out rows: add --eval_strategy steps")
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


def check_model(model: ModelArguments) -> Any:
    """The configuration of ``--model_name_or_path``, checked before any weight is loaded.

    Raises:
        UserError: no model, an adapter instead of a model, another family, or a package that is missing.
    """
    name = model.model_name_or_path
    if not name:
        raise UserError("--model_name_or_path is missing; give a model folder or a Hub id")
    if (Path(name) / "adapter_config.json").is_file():
        raise UserError(f"{name} is a LoRA adapter; merge it first: python -m virft.merge {name} OUTPUT")
    if str(model.attn_implementation).startswith("flash_attention") and not _installed("flash_attn"):
        raise UserError(
            f"--attn_implementation {model.attn_implementation} needs the package flash-attn, which is not "
            "installed; install it (bash setup.sh --flash-attn) or use sdpa"
        )
    if (model.load_in_4bit or model.load_in_8bit) and not _installed("bitsandbytes"):
        raise UserError("--load_in_4bit and --load_in_8bit need bitsandbytes; pip install 'virft[qlora]'")
    config = model_config(name, model.model_revision)
    if config.model_type not in FAMILY_SPACE:
        raise UserError(f"{name} is a {config.model_type!r} model; supported: {', '.join(FAMILY_SPACE)}")
    return config


def resolve_vision(settings: VisionSettings, model_name: str, config: Any) -> None:
    """Fill in the settings' open choices from the checkpoint's manifest, else from the defaults.

    Raises:
        UserError: limits that contradict each other, or a space that nothing tells.
    """
    manifest = read_manifest(model_name) or Manifest("", MIN_PIXELS, MAX_PIXELS)
    if settings.min_pixels is None:
        settings.min_pixels = manifest.min_pixels
    if settings.max_pixels is None:
        settings.max_pixels = manifest.max_pixels
    if settings.system_prompt is None:
        settings.system_prompt = manifest.system_prompt
    if settings.coordinates == "auto":
        settings.coordinates = manifest.space or resolve_space(config)
    if not 0 < settings.min_pixels <= settings.max_pixels:
        raise UserError(
            f"--min_pixels {settings.min_pixels} must be positive and not above --max_pixels "
            f"{settings.max_pixels}"
        )


def load_processor(name: str, settings: VisionSettings, revision: str | None = None) -> ProcessorMixin:
    """The processor of a model with the settings' pixel limits, which an assertion holds it to.

    Raises:
        UserError: there is none.
    """
    low, high = settings.min_pixels or MIN_PIXELS, settings.max_pixels or MAX_PIXELS
    try:
        processor = AutoProcessor.from_pretrained(
            name, revision=revision, min_pixels=low, max_pixels=high, padding_side="left"
        )
    except OSError as error:
        raise UserError(f"model {name}: no processor in it ({str(error).splitlines()[0]})") from None
    size = processor.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (low, high), f"pixel limits were ignored: {size}"
    return processor


def model_options(model: ModelArguments, bf16: bool, deepspeed: bool) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained``.

    bfloat16 weights are loaded only where small updates are not rounded away in them: under DeepSpeed,
    which keeps float32 masters, and under LoRA, whose base never changes.
    """
    if model.dtype is None:
        apart = deepspeed or model.use_peft
        model.dtype = "bfloat16" if bf16 and apart else "float32"
    return {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }


def lora_and_quantization(model: ModelArguments) -> tuple[Any, BitsAndBytesConfig | None]:
    """(LoRA configuration or None, quantisation configuration or None), through TRL."""
    return get_peft_config(model), get_quantization_config(model)


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


def parse_flags(classes: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """The flags (and ``--config FILE.yaml`` beneath them) as one object of each class.

    Raises:
        UserError: a value that a class refuses, or a configuration file that is missing or holds unknown
            keys.
    """
    try:
        return TrlParser(classes).parse_args_and_config(argv)
    except UserError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise UserError(" ".join(str(error).split())) from error


def quiet_libraries() -> None:
    """Silence lines that a newcomer takes for failures; call it before anything imports DeepSpeed."""
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|trl|torch|peft|deepspeed)"
    )
    warnings.filterwarnings("ignore", message=".*pin_memory.*no accelerator is found.*")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no accelerator


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
