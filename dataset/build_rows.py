"""Your own rows - JSON, JSONL or CSV, in any training format of the field - as rows that virft trains on.

  # LLaMA-Factory sharegpt, ms-swift messages, VLM-R1, EasyR1, MAT or lisa_train.json: recognised by their
  # columns
  python dataset/build_rows.py --source mllm.json --image_folder images --task grounding \\
      --output data/mine.jsonl

  # your own column names, and boxes in pixels
  python dataset/build_rows.py --source poles.json --map problem=problems solution=solutions \\
      --task detection --box_space pixels --output data/poles.jsonl

Solutions are read by the same parser as a model's replies and written anew in thousandths of the image; a row
that cannot be read stops the build with its number (counted from 0) and the reason. Formats: see
src/virft/data/formats.py.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from virft.data.builders import own_rows
from virft.data.builders.labelled import write_drafts
from virft.data.builders.manifest import fingerprint
from virft.data.builders.output import Target
from virft.data.builders.progress import bars
from virft.data.coordinates import ROW_SPACE
from virft.data.records import records
from virft.errors import UserError
from virft.programs import run_program


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = flags.add_argument
    add("--source", type=Path, required=True, help=".json (a list), .jsonl or .csv")
    add("--output", required=True, help="NAME.jsonl, NAME.parquet, or a folder (save_to_disk, images inside)")
    add("--image_folder", type=Path, help="what image paths are relative to (default: the source's folder)")
    add("--task", help=f"of rows without a column 'task': {', '.join(own_rows.TASKS)}")
    add(
        "--box_space",
        default=ROW_SPACE,
        help="of the boxes in solutions: norm1000, pixels or xywh (default: %(default)s)",
    )
    add(
        "--map", nargs="+", default=(), metavar="OURS=THEIRS", help="columns by other names: problem=question"
    )
    add("--processes", type=int, default=min(4, os.cpu_count() or 1), help="default: %(default)s")
    add("--overwrite", action="store_true", help="replace a set that stands there")
    return flags


def main(argv: list[str] | None = None) -> None:
    """Build the set that the flags ask for."""
    flags = parser().parse_args(argv)
    pairs = [pair.partition("=") for pair in flags.map]
    if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
        raise UserError(f"--map {wrong[0]}: write OURS=THEIRS, such as problem=question")
    names = {ours: theirs for ours, _, theirs in pairs}
    if len(names) < len(pairs):
        raise UserError("--map names one of our columns twice: name it once")
    settings = {
        "task": flags.task,
        "source": fingerprint(flags.source),
        "image_folder": flags.image_folder and flags.image_folder.as_posix(),
        "map": names,
        "box_space": flags.box_space,
    }
    drafts = list(
        own_rows.drafts(
            records(flags.source),
            str(flags.source),
            flags.image_folder or flags.source.parent,
            names=names,
            task=flags.task,
            box_space=flags.box_space,
        )
    )
    target = Target.of(flags.output)
    counts = write_drafts(
        drafts,
        target,
        settings,
        {},
        command=shlex.join(["dataset/build_rows.py", *(sys.argv[1:] if argv is None else argv)]),
        processes=flags.processes,
        overwrite=flags.overwrite,
        stage=bars,
    )
    done = "stands there already, built by the same command" if counts is None else f"{counts['rows']} rows"
    sys.stdout.write(f"{target.path}: {done}\n")


if __name__ == "__main__":
    run_program(main)
