"""From the flags of a training program to a model that can be loaded: checked, open choices settled."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, BitsAndBytesConfig, ProcessorMixin
from transformers.integrations import get_available_reporting_integrations
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import get_peft_config, get_quantization_config

from virft.boxes import FAMILY_SPACE, check_pixel_limits
from virft.checkpoint import Manifest, read_manifest, resolve_space
from virft.errors import UserError
from virft.files import check_folder
from virft.lora_modules import check_lora_modules
from virft.model_files import model_config
from virft.settings import ModelArguments
from virft.training_config import MAX_PIXELS, MIN_PIXELS, TrainingConfig


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
        _check_lora_numbers(model)
    if (model.load_in_4bit or model.load_in_8bit) and not _installed("bitsandbytes"):
        raise UserError(
            "--load_in_4bit and --load_in_8bit need bitsandbytes; install it (bash setup.sh --qlora)"
        )
    if args.fsdp and (model.load_in_4bit or model.load_in_8bit):
        raise UserError(
            "--fsdp cannot go on from its checkpoints with quantised weights; drop it or the --load_in_ flag"
        )
    config = model_config(name, model.model_revision)
    if config.model_type not in FAMILY_SPACE:
        raise UserError(f"{name} is a {config.model_type!r} model; supported: {', '.join(FAMILY_SPACE)}")
    return config


def _check_lora_numbers(model: ModelArguments) -> None:
    for flag in ("lora_r", "lora_alpha"):
        if getattr(model, flag) < 1:
            raise UserError(f"--{flag} {getattr(model, flag)} must be at least 1")
    if not 0 <= model.lora_dropout < 1:
        raise UserError(f"--lora_dropout {model.lora_dropout:g} must be at least 0 and below 1")


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
    if args.fsdp and args.use_cpu:
        raise UserError("--fsdp needs GPUs: accelerate ignores it with --use_cpu true; drop one of them")
    if getattr(args, "use_vllm", False) and not _installed("vllm"):
        raise UserError("--use_vllm needs the package vllm; install it (bash setup.sh --vllm)")


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


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
