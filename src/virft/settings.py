"""Flags that training programs share: which rows, which model, which pixels, and what they resolve to."""

from __future__ import annotations

import importlib.util
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
from transformers import AutoProcessor, BitsAndBytesConfig, ProcessorMixin
from transformers.integrations import get_available_reporting_integrations
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from virft.boxes import FAMILY_SPACE, check_pixel_limits
from virft.checkpoint import Manifest, read_manifest, resolve_space
from virft.errors import UserError, unknown_flag
from virft.files import check_folder
from virft.lora_modules import check_lora_modules
from virft.model_files import model_config
from virft.training_config import MAX_PIXELS, MIN_PIXELS, TrainingConfig

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


def check_model(model: ModelArguments, args: TrainingConfig) -> Any:
    """The configuration of ``--model_name_or_path``, checked before any weight is loaded.

    Raises:
        UserError: no model, an adapter instead of a model, another family, flags that exclude each other, or
            a package that is missing.
    """
    if args.freeze_vision and model.lora_vision:
        raise UserError("--freeze_vision and --lora_vision exclude each other; drop one")
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
    known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    if model.attn_implementation not in known and "/" not in str(model.attn_implementation):
        raise UserError(
            f"--attn_implementation {model.attn_implementation} is none of {', '.join(sorted(known))}"
        )
    if model.dtype not in (None, "auto") and not isinstance(getattr(torch, model.dtype, None), torch.dtype):
        raise UserError(f"--dtype {model.dtype} is no type of PyTorch; use bfloat16, float16 or float32")
    if model.use_peft:
        for flag in ("lora_r", "lora_alpha"):
            if getattr(model, flag) < 1:
                raise UserError(f"--{flag} {getattr(model, flag)} must be at least 1")
        if not 0 <= model.lora_dropout < 1:
            raise UserError(f"--lora_dropout {model.lora_dropout:g} must be at least 0 and below 1")
    if (model.load_in_4bit or model.load_in_8bit) and not _installed("bitsandbytes"):
        raise UserError("--load_in_4bit and --load_in_8bit need bitsandbytes; pip install 'virft[qlora]'")
    config = model_config(name, model.model_revision)
    if config.model_type not in FAMILY_SPACE:
        raise UserError(f"{name} is a {config.model_type!r} model; supported: {', '.join(FAMILY_SPACE)}")
    return config


def prepare_model(model: ModelArguments, args: TrainingConfig) -> ProcessorMixin:
    """Check the model, settle what the configuration leaves open for it to say, and load its processor.

    Raises:
        UserError: see :func:`check_model`, :func:`resolve_vision`, :func:`load_processor`,
            :func:`virft.files.check_folder`, :func:`check_packages`.
    """
    config = check_model(model, args)
    if model.use_peft:
        check_lora_modules(config, model.lora_target_modules, model.lora_modules_to_save)
    check_folder("--output_dir", args.output_dir)
    check_packages(args)
    resolve_vision(args, model.model_name_or_path, config)
    options = model_options(model, args.bf16, bool(args.deepspeed))
    args.model_init_kwargs = options | (args.model_init_kwargs or {})
    return load_processor(model.model_name_or_path, args, model.model_revision)


def check_packages(args: TrainingConfig) -> None:
    """Refuse what needs a package that is not installed.

    Raises:
        UserError: naming the flag and the package.
    """
    usable = get_available_reporting_integrations()
    for name in args.report_to:
        if name not in usable:
            raise UserError(
                f"--report_to {name} is unknown or not installed; usable here: {', '.join(usable) or 'none'}"
            )
    if args.use_liger_kernel and not _installed("liger_kernel"):
        raise UserError("--use_liger_kernel needs the package liger-kernel; pip install liger-kernel")
    if args.fsdp and args.world_size == 1:
        raise UserError("--fsdp shards over several processes; start them with torchrun, or drop it")
    if getattr(args, "use_vllm", False) and not _installed("vllm"):
        raise UserError("--use_vllm needs the package vllm; install it (bash setup.sh --vllm)")


def check_held_out(rows: RowArguments, args: TrainingConfig) -> None:
    """Refuse held-out rows that nothing would look at. Raises UserError naming the flag."""
    if rows.eval_dataset_name and args.eval_strategy == "no":
        raise UserError(
            "--eval_dataset_name without --eval_strategy changes nothing; add --eval_strategy steps"
        )


def resolve_vision(settings: TrainingConfig, model_name: str, config: Any) -> None:
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
    check_pixel_limits(settings.min_pixels, settings.max_pixels)


def load_processor(name: str, settings: TrainingConfig, revision: str | None = None) -> ProcessorMixin:
    """The processor of a model with the settings' pixel limits, which an assertion holds it to.

    Raises:
        UserError: there is none, or the limits contradict each other.
    """
    low, high = settings.min_pixels or MIN_PIXELS, settings.max_pixels or MAX_PIXELS
    check_pixel_limits(low, high)
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
    """(LoRA configuration or None, quantisation configuration or None), through TRL.

    Raises:
        UserError: settings that PEFT refuses.
    """
    try:
        return get_peft_config(model), get_quantization_config(model)
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error


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


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
