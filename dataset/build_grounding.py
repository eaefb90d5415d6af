"""Grounding rows from LISA's ReasonSeg: one for every instruction of every image, its box around the
polygons.

  python dataset/build_grounding.py --split ReasonSeg/train --output data/lisa.jsonl

--polygons all (default) draws the box around every target polygon, as LISA's own evaluation counts them;
first_shape takes the first polygon only, as the Visual-RFT reference does. The reference's lisa_train.json
(image_path, instruction, boxes) is read by build_rows.py --task grounding. The same command gives the same
bytes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from virft.data.builders.labelled import grounding_drafts, write_drafts
from virft.data.builders.manifest import combined_fingerprint
from virft.data.builders.output import Target
from virft.data.builders.progress import bars
from virft.data.lisa import TRUTH_RULES, read_split
from virft.programs import run_program


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = flags.add_argument
    add("--split", type=Path, required=True, help="folder of a split: NAME.jpg and NAME.json files")
    add("--output", required=True, help="NAME.jsonl, NAME.parquet, or a folder (save_to_disk, images inside)")
    add("--polygons", choices=TRUTH_RULES, default="all", help="default: %(default)s")
    add("--processes", type=int, default=min(4, os.cpu_count() or 1), help="default: %(default)s")
    add("--overwrite", action="store_true", help="replace a set that stands there")
    return flags


def main(argv: list[str] | None = None) -> None:
    """Build the set that the flags ask for."""
    flags = parser().parse_args(argv)
    annotations = read_split(flags.split)
    drafts = grounding_drafts(annotations, flags.polygons)
    with_target = len({draft.place for draft in drafts})
    target = Target.of(flags.output)
    counts = write_drafts(
        drafts,
        target,
        {
            "task": "grounding",
            "source": combined_fingerprint(flags.split, [annotation.path for annotation in annotations]),
            "polygons": flags.polygons,
        },
        {"images": len(annotations), "images_without_target": len(annotations) - with_target},
        command=shlex.join(["dataset/build_grounding.py", *(sys.argv[1:] if argv is None else argv)]),
        processes=flags.processes,
        overwrite=flags.overwrite,
        stage=bars,
    )
    if counts is None:
        sys.stdout.write(f"{target.path}: stands there already, built by the same command\n")
        return
    sys.stdout.write(
        f"{target.path}: {counts['rows']} rows from {counts['images']} images "
        f"({counts['images_without_target']} without a target left out)\n"
    )


if __name__ == "__main__":
    run_program(main)
