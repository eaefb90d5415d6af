"""A model's folder or Hub id before anything of it is loaded: its configuration, and whether its weights are
whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from virft.errors import UserError


def model_config(model: str | Path, revision: str | None = None) -> Any:
    """The configuration of a checkpoint folder (a LoRA adapter's is its base model's) or Hub id.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoConfig

    if Path(model).is_absolute() and not Path(model).exists():
        raise UserError(f"model {model}: no such folder")
    adapter = Path(model) / "adapter_config.json"
    try:
        if adapter.is_file() and not (Path(model) / "config.json").is_file():
            return AutoConfig.from_pretrained(adapter_base(model))
        return AutoConfig.from_pretrained(str(model), revision=revision)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model {model}: no configuration can be loaded from it ({reason})") from None


def without_weights(config: Any) -> Any:
    """The model of a configuration with its modules and shapes alone, on the meta device."""
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.integrations import deepspeed

    # Where ZeRO-3 is set up, transformers would shard the parameters and fill them.
    zero, deepspeed._hf_deepspeed_config_weak_ref = deepspeed._hf_deepspeed_config_weak_ref, None
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = zero


def adapter_base(folder: str | Path) -> str:
    """The base model that a LoRA adapter names.

    Raises:
        UserError: an ``adapter_config.json`` that cannot be read, or names none.
    """
    path = Path(folder) / "adapter_config.json"
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except KeyError as error:
        raise UserError(f"{path}: no {error} in it, so it is no adapter of a model") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not the configuration of an adapter ({error})") from None
    if not isinstance(base, str):
        raise UserError(f"{path}: base_model_name_or_path is {base!r}; write the base model's folder there")
    return base


def check_weights(model: str | Path) -> None:
    """Refuse a model folder without weights, or whose ``.safetensors`` files are cut off or missing, by their
    headers alone. A Hub id passes; so do weights in another form.

    Raises:
        UserError: naming the file.
    """
    folder = Path(model)
    index = folder / "model.safetensors.index.json"
    try:
        listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError:
        listed = {path.name for path in folder.glob("*.safetensors")}
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"model {model}: {index.name} cannot be read ({error}); copy it again") from None
    if folder.is_dir() and not listed and not any(folder.glob("*.bin")):
        raise UserError(f"model {model}: no weights in it, such as model.safetensors")
    for name in sorted(listed):
        if not (folder / name).is_file():
            raise UserError(f"model {model}: {name} is missing, which {index.name} names; copy it again")
        size = (folder / name).stat().st_size
        if (needed := _safetensors_size(folder / name)) != size:
            whole = "is no file of weights" if needed is None else f"has {size:,} of {needed:,} bytes"
            raise UserError(f"model {model}: {name} {whole}; copy or download it again")


def _safetensors_size(path: Path) -> int | None:
    """Bytes that a ``.safetensors`` file says it has; None where its header cannot be read."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None
    return 8 + length + max(ends, default=0)
