"""Training rows in another framework's format, to compare with on the very same data.

  # LLaMA-Factory: data.json, its entry in dataset_info.json and a LoRA recipe that runs as it is
  python dataset/export.py --dataset_name data/coco_8x4.jsonl --format llamafactory \\
      --output lf/coco_8x4.json \\
      --model_name_or_path Qwen/Qwen2-VL-2B-Instruct --min_pixels 3136 --max_pixels 401408
  llamafactory-cli train lf/coco_8x4_lora_sft.yaml

  # ms-swift, for SFT or for GRPO
  python dataset/export.py --dataset_name data/coco_8x4.jsonl --format swift --output swift/coco_8x4.jsonl
  python dataset/export.py --dataset_name data/coco_8x4.jsonl --format swift-grpo --output swift/grpo.jsonl

SFT formats teach what src/virft/sft.py teaches: the row's column completion, else its solution behind a
think block.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from virft.boxes import check_pixel_limits
from virft.data.export import (
    JSON_LISTS,
    WRITERS,
    export,
    read_dataset_info,
    write_dataset_info,
    write_lora_recipe,
)
from virft.data.mixture import load_mixture, parts_of
from virft.data.training import load_rows
from virft.errors import UserError
from virft.programs import run_program

CUTOFF = 2048
"""Tokens of a sample in the recipe."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = flags.add_argument
    add(
        "--dataset_name",
        nargs="+",
        required=True,
        help="rows as training takes them: a file, a folder or a Hub id; several, with shares as in "
        "a.jsonl:0.7, are mixed as training mixes them",
    )
    add("--seed", type=int, default=42, help="of a mixture, the training's (default: %(default)s)")
    add("--dataset_train_split", default="train", help="default: %(default)s")
    add("--image_folder", help="where relative image paths start (default: beside the rows' file)")
    add("--format", choices=list(WRITERS), required=True)
    add("--output", type=Path, required=True, help=f".json for {' and '.join(JSON_LISTS)}, else .jsonl")
    add("--overwrite", action="store_true", help="replace a file that stands there")
    add("--absolute", action="store_true", help="absolute image paths (swift formats always have them)")
    add("--model_name_or_path", help="also write NAME_lora_sft.yaml for LLaMA-Factory, training this model")
    add("--min_pixels", type=int, help="of the recipe: the reinforcement run's")
    add("--max_pixels", type=int, help="of the recipe: the reinforcement run's")
    add("--cutoff_len", type=int, help=f"of the recipe; longer samples are cut (default: {CUTOFF})")
    return flags


def main(argv: list[str] | None = None) -> None:
    """Export the rows that the flags name."""
    flags = parser().parse_args(argv)
    suffix = ".json" if flags.format in JSON_LISTS else ".jsonl"
    if flags.output.suffix != suffix:
        raise UserError(f"--output {flags.output}: {flags.format} is written as {suffix}")
    recipe = flags.model_name_or_path
    if recipe and (flags.format not in JSON_LISTS or not flags.min_pixels or not flags.max_pixels):
        raise UserError(
            f"--model_name_or_path writes a recipe for {' or '.join(JSON_LISTS)} and needs --min_pixels and "
            "--max_pixels"
        )
    given = [name for name in ("min_pixels", "max_pixels", "cutoff_len") if getattr(flags, name) is not None]
    if given and not recipe:
        raise UserError(f"--{given[0]} is of the recipe, which --model_name_or_path asks for")
    if flags.cutoff_len is not None and flags.cutoff_len < 1:
        raise UserError("--cutoff_len must be at least 1")
    if recipe:
        check_pixel_limits(flags.min_pixels, flags.max_pixels)
    if flags.output.resolve() in [Path(part.name).resolve() for part in parts_of(flags.dataset_name)]:
        raise UserError(f"--output {flags.output} is the rows themselves; name another file")
    if flags.output.exists() and not flags.overwrite:
        raise UserError(f"--output {flags.output} exists: pass --overwrite, or name another file")
    if flags.format in JSON_LISTS:
        read_dataset_info(flags.output.parent)  # refuses a broken one before anything is written
    rows = load_mixture(
        flags.dataset_name, load_rows, flags.dataset_train_split, flags.image_folder, flags.seed
    )
    # ms-swift asks for absolute paths (its docs, Custom-dataset).
    absolute = flags.absolute or flags.format.startswith("swift")
    written = export(rows, flags.format, flags.output, absolute)
    sys.stdout.write(f"{flags.output}: {written} records\n")
    if flags.format in JSON_LISTS:
        name, folder = flags.output.stem, flags.output.parent
        system = "system" in rows.column_names
        info = write_dataset_info(folder, name, flags.output.name, flags.format, system)
        sys.stdout.write(f"{info}: entry {name!r}\n")
        if recipe:
            path = folder / f"{name}_lora_sft.yaml"
            write_lora_recipe(
                path,
                model=recipe,
                dataset=name,
                dataset_dir=str(folder),
                min_pixels=flags.min_pixels,
                max_pixels=flags.max_pixels,
                cutoff=flags.cutoff_len or CUTOFF,
            )
            sys.stdout.write(f"{path}: llamafactory-cli train {path}\n")


if __name__ == "__main__":
    run_program(main)
