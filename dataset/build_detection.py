"""Detection rows from COCO, LVIS, YOLO or Pascal VOC annotations, or a table of boxes.

One row for each image and category: "detect all objects belonging to the category ...". Examples:

  # COCO, all 80 categories, one row in five asks for something that is not there
  python dataset/build_detection.py --source annotations/instances_train2017.json \\
      --image_folder train2017 --negatives 0.2 --output data/coco.jsonl

  # the paper's few-shot set: 8 categories, 4 images each
  python dataset/build_detection.py --source annotations/instances_train2017.json \\
      --image_folder train2017 --categories fewshot8 --shots 4 --seed 0 --output data/coco_8x4.jsonl

  # the paper's open-vocabulary set: 6,000 rows of the 65 base categories
  python dataset/build_detection.py --source annotations/instances_train2017.json \\
      --image_folder train2017 --categories base65 --rows 6000 --output data/coco_base65.parquet

  # LVIS; a YOLO folder; a CSV of boxes
  python dataset/build_detection.py --source lvis_v1_train.json --image_folder coco --categories fewshot6 \\
      --shots 10 --output data/lvis6.jsonl
  python dataset/build_detection.py --kind yolo --source my_set --output data/mine.jsonl
  python dataset/build_detection.py --kind table --source boxes.csv --image_folder images \\
      --output data/mine.jsonl

The rules about crowds, tiny boxes and negatives are in dataset/README.md. A manifest beside the set holds
the sources' hashes, every option and the counts; the same command gives the same bytes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from virft.boxes import MODEL_SPACES
from virft.data.builders.detection import DetectionSettings, build
from virft.data.builders.output import Target
from virft.data.builders.progress import bars
from virft.data.builders.readers import READERS
from virft.data.builders.rules import UNITS, BoxRules
from virft.data.coco import CATEGORY_PRESETS
from virft.programs import run_program


def parser() -> argparse.ArgumentParser:
    """The flags."""
    defaults, rules = DetectionSettings(Path()), BoxRules()
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = flags.add_argument
    add("--source", type=Path, required=True, help="annotation file, or the folder of a YOLO or VOC set")
    add("--output", required=True, help="NAME.jsonl, NAME.parquet, or a folder (save_to_disk, images inside)")
    add(
        "--kind",
        choices=list(READERS),
        default=defaults.kind,
        help="what the source is (default: %(default)s)",
    )
    add("--image_folder", type=Path, help="what image paths are relative to (default: the source's folder)")
    add("--split", help="split of a YOLO or VOC set, such as train")
    add("--box_space", default=defaults.box_space, help="space of a table's corners (default: %(default)s)")
    presets = ", ".join(["all", "base65", *CATEGORY_PRESETS])
    add("--categories", nargs="+", default=(), help=f"names or presets: {presets} (default: all)")
    add("--shots", type=int, default=0, help="this many images of each category; their rows only")
    add("--rows", type=int, default=0, help="this many rows in all (default: every one)")
    add("--negatives", type=float, default=0.0, help='share of rows answered "No Objects" (default: 0)')
    add("--seed", type=int, default=0, help="of shots, rows and negatives (default: 0)")
    add(
        "--coordinates",
        choices=MODEL_SPACES,
        default=defaults.space,
        help="space of the written boxes; training converts norm1000 to any (default: %(default)s)",
    )
    add("--min_pixels", type=int, help="for --coordinates abs_resized: the training's")
    add("--max_pixels", type=int, help="for --coordinates abs_resized: the training's")
    add(
        "--crowd",
        choices=UNITS,
        default=rules.crowd,
        help="what a crowd takes out (default: its %(default)s)",
    )
    add(
        "--tiny",
        choices=UNITS,
        default=rules.tiny,
        help="what a tiny box takes out (default: its %(default)s)",
    )
    add(
        "--min_side",
        type=float,
        default=rules.min_side,
        help="a box is tiny under this many thousandths of its image's side (default: %(default)s)",
    )
    add(
        "--max_boxes",
        type=int,
        default=rules.max_boxes,
        help="leave out pairs with more boxes; 0: no limit (default: %(default)s)",
    )
    add("--leave_out_wrong", action="store_true", help="leave out pairs with wrong boxes instead of stopping")
    add(
        "--leave_out",
        type=Path,
        nargs="+",
        default=(),
        metavar="SET",
        help="sets of this source whose images are not taken: validation rows that no training row shares",
    )
    add("--processes", type=int, default=min(4, os.cpu_count() or 1), help="default: %(default)s")
    add("--work_folder", type=Path, help="where the temporary index is kept (default: beside the output)")
    add("--overwrite", action="store_true", help="replace a set that stands there")
    return flags


def main(argv: list[str] | None = None) -> None:
    """Build the set that the flags ask for."""
    flags = parser().parse_args(argv)
    settings = DetectionSettings(
        source=flags.source,
        kind=flags.kind,
        image_folder=flags.image_folder,
        categories=tuple(flags.categories),
        shots=flags.shots,
        rows=flags.rows,
        negatives=flags.negatives,
        seed=flags.seed,
        space=flags.coordinates,
        min_pixels=flags.min_pixels,
        max_pixels=flags.max_pixels,
        rules=BoxRules(flags.crowd, flags.tiny, flags.min_side, flags.max_boxes),
        leave_out_wrong=flags.leave_out_wrong,
        leave_out=tuple(flags.leave_out),
        split=flags.split,
        box_space=flags.box_space,
    )
    target = Target.of(flags.output)
    counts = build(
        settings,
        target,
        command=shlex.join(["dataset/build_detection.py", *(sys.argv[1:] if argv is None else argv)]),
        processes=flags.processes,
        overwrite=flags.overwrite,
        work_folder=flags.work_folder,
        stage=bars,
    )
    if counts is None:
        sys.stdout.write(f"{target.path}: stands there already, built by the same command\n")
        return
    for name, found in counts["categories_short_of_shots"].items():
        sys.stderr.write(f"warning: {name}: {found} images instead of {flags.shots}\n")
    if counts["negatives"] < counts["negatives_wanted"]:
        wanted = counts["negatives_wanted"]
        sys.stderr.write(f"warning: only {counts['negatives']} of {wanted} negatives were found\n")
    if counts["rows"] < flags.rows:
        sys.stderr.write(f"warning: only {counts['rows']} of {flags.rows} rows were found\n")
    left_out = ", ".join(f"{count} {why}" for why, count in counts["pairs_left_out"].items()) or "none"
    less = f" less {counts['images_left_out']}" if flags.leave_out else ""
    sys.stdout.write(
        f"{target.path}: {counts['rows']} rows, {counts['negatives']} of them negative, from "
        f"{counts['images']}{less} images and {counts['annotations']} boxes; pairs left out: {left_out}\n"
    )


if __name__ == "__main__":
    run_program(main)
