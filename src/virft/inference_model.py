"""What every engine needs of a checkpoint, and the checks that come before it is loaded: device, data type,
processor, weights, system prompt, end tokens, and a sample as the model's chat template writes it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, PreTrainedModel

from virft.boxes import check_pixel_limits
from virft.checkpoint import read_manifest
from virft.errors import UserError
from virft.model_files import adapter_base, check_weights
from virft.types import Sample

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTION = ("sdpa", "eager", "flash_attention_2")


def pick_device(device: str | None) -> torch.device:
    """The device by name; ``None`` or ``auto`` takes CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: no name of a device, or a device that is not there.
    """
    if device in (None, "auto"):
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device!r} is no device; use auto, cpu, cuda, cuda:1 or mps") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no CUDA device; use --device cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError(f"--device {device}: the last CUDA device that torch sees is cuda:{last}")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {device}: torch sees no Apple GPU; use --device cpu")
    return chosen


def check_attention(attn_implementation: str) -> None:
    """Refuse an attention that is not there. Raises UserError naming the flag."""
    if attn_implementation not in ATTENTION:
        raise UserError(
            f"--attn_implementation {attn_implementation} is unknown; choose one of {', '.join(ATTENTION)}"
        )
    if attn_implementation.startswith("flash_attention") and importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            f"--attn_implementation {attn_implementation} needs the package flash-attn, which is not "
            "installed; install it (bash setup.sh --flash-attn) or use sdpa"
        )


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype by name; ``auto`` is bfloat16 on a CUDA device and float32 elsewhere."""
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, dtype)


def load_processor(model_path: str, min_pixels: int | None, max_pixels: int | None) -> Any:
    """The processor of a checkpoint with its pixel budget; None keeps the checkpoint's own limit.

    Raises:
        UserError: no processor there, or limits that contradict each other.
    """
    manifest = read_manifest(model_path)
    if manifest is not None:
        min_pixels = manifest.min_pixels if min_pixels is None else min_pixels
        max_pixels = manifest.max_pixels if max_pixels is None else max_pixels
    try:
        processor = AutoProcessor.from_pretrained(model_path)
        size = processor.image_processor.size
        low = size["shortest_edge"] if min_pixels is None else min_pixels
        high = size["longest_edge"] if max_pixels is None else max_pixels
        check_pixel_limits(low, high)
        limits = {"shortest_edge": low, "longest_edge": high}
        return AutoProcessor.from_pretrained(model_path, size=limits)
    except OSError as error:
        raise UserError(
            f"model {model_path}: no processor can be loaded from it ({_first_line(error)})"
        ) from error


def load_model(model_path: str, dtype: torch.dtype, attn_implementation: str) -> PreTrainedModel:
    """A model by ``config.model_type``, in evaluation mode; a LoRA adapter is merged into its base model.

    Raises:
        UserError: there is no model at ``model_path``, or flash attention is asked for and not installed.
    """
    check_attention(attn_implementation)
    check_weights(model_path)
    options = {"dtype": dtype, "attn_implementation": attn_implementation}
    try:
        if (Path(model_path) / "adapter_config.json").is_file():
            from peft import PeftModel

            base = adapter_base(model_path)
            check_weights(base)
            model = AutoModelForImageTextToText.from_pretrained(base, **options)
            model = PeftModel.from_pretrained(model, model_path).merge_and_unload()
        else:
            model = AutoModelForImageTextToText.from_pretrained(model_path, **options)
    except (OSError, SafetensorError) as error:
        raise UserError(f"model {model_path}: cannot be loaded ({_first_line(error)})") from error
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise UserError(
            f"model {model_path}: its weights have not the shapes that its config.json says; copy both again"
        ) from error
    return model.eval()


def resolve_system(model_path: str, system: str | None) -> str | None:
    """The system prompt to use: the argument, else the checkpoint's own; "" means none."""
    if system is not None:
        return system or None
    manifest = read_manifest(model_path)
    return manifest.system_prompt if manifest is not None else None


def end_tokens(generation_config: GenerationConfig, tokenizer: Any) -> frozenset[int]:
    """Ids that end a reply. Nothing else of a model's generation config is used: no sampling, no penalties.

    Raises:
        UserError: neither generation config nor tokenizer has one.
    """
    ids = generation_config.eos_token_id
    found = {ids} if isinstance(ids, int) else set(ids or ())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    if not found:
        raise UserError("neither the model's generation config nor its tokenizer has an end token")
    return frozenset(found)


def chat_text(processor: Any, sample: Sample, system: str | None) -> str:
    """A sample as the model's chat template writes it: system message if any, images, then the prompt.

    Args:
        processor: the checkpoint's.
        sample: its own system message goes before ``system``.
        system: for samples without one; None or "" means no message.
    """
    system = system if sample.system is None else sample.system
    content = [{"type": "image"} for _ in sample.images] + [{"type": "text", "text": sample.prompt}]
    chat = [{"role": "system", "content": system}] if system else []
    return processor.apply_chat_template(
        [*chat, {"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def check_decoding(batch_size: int, max_new_tokens: int, temperature: float) -> None:
    """Refuse decoding settings out of range before anything is loaded.

    Raises:
        UserError: naming the flag.
    """
    for flag, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise UserError(f"--{flag} must be at least 1, got {value}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"--temperature must be 0 (greedy) or above, got {temperature}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
