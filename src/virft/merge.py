"""Merge a LoRA adapter into its base model: ``python -m virft.merge ADAPTER OUTPUT``.

The output is a whole checkpoint: weights, processor, generation configuration and manifest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from virft.checkpoint import Manifest, read_manifest, resolve_space, saved_whole, write_manifest
from virft.errors import UserError
from virft.files import check_folder
from virft.model_files import adapter_base, check_weights, model_config
from virft.programs import run_program


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and merge."""
    parser = argparse.ArgumentParser(prog="python -m virft.merge", description=__doc__.splitlines()[0])
    parser.add_argument("adapter", help="folder of a LoRA checkpoint (adapter_config.json)")
    parser.add_argument("output", help="folder of the merged checkpoint; must not hold a model yet")
    parser.add_argument("--base", help="base model; default: the one that the adapter names")
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float16", "float32"),
        help="of the merged weights; default: bfloat16",
    )
    args = parser.parse_args(argv)
    merge(args.adapter, args.output, args.base, args.dtype)


def merge(adapter: str | Path, output: str | Path, base: str | None = None, dtype: str = "bfloat16") -> Path:
    """Add an adapter's low-rank products to its base model's weights and save the result.

    Args:
        adapter: folder of the adapter.
        output: where to save.
        base: base model; None takes the adapter's own word.
        dtype: of the merged weights.

    Raises:
        UserError: no adapter there, no base model, or an output that already holds a model.
    """
    adapter, output = Path(adapter), Path(output)
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(f"{adapter}: no adapter_config.json in it; give the folder of a LoRA checkpoint")
    if (output / "config.json").exists():
        raise UserError(f"{output} holds a model already; give another folder")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base = base or adapter_base(adapter)
    config = model_config(base)
    check_weights(base)
    check_weights(adapter)
    check_folder("output", output)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=getattr(torch, dtype))
    try:
        processor = AutoProcessor.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{adapter}: no processor can be loaded from it ({reason})") from error
    try:
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (RuntimeError, ValueError) as error:  # PEFT's words for other shapes and other layers
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{adapter} does not fit its base model {base} ({reason}); give --base") from error
    size = processor.image_processor.size
    known = read_manifest(adapter) or Manifest(
        resolve_space(config), size["shortest_edge"], size["longest_edge"], model_type=config.model_type
    )
    with saved_whole(output, "make room, or name another output"):
        merged.save_pretrained(output)
        processor.save_pretrained(output)
        write_manifest(output, replace(known, program="merge", base_model=str(base)))
    return output


if __name__ == "__main__":
    sys.exit(run_program(main))
