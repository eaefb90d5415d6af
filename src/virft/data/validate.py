"""Check training rows without a model: ``python -m virft.data.validate FILE [--task detection]``.

Schema, every image decoded to its last pixel, solutions readable, boxes inside their image, no question asked
twice, and the task's rewards on the solutions themselves; with ``--held_out FILE`` no image stands in both
sets. Problems are named with row numbers (counted from 0). Ends with a summary and exit code 0, or with one
error line and exit code 2.

Records of another training format (:mod:`virft.data.formats`) are checked as the rows that
``dataset/build_rows.py`` makes of them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virft.boxes import convert
from virft.data.builders import own_rows
from virft.data.builders.labelled import write_drafts
from virft.data.builders.output import Target
from virft.data.builders.readers import RECORD_SUFFIXES, records
from virft.data.coordinates import ROW_SPACE
from virft.data.formats import format_of
from virft.data.training import load_rows, named
from virft.errors import UserError, run_program
from virft.parsing import parse_detections, parse_grounding
from virft.rewards import TASK_REWARDS, check_solutions, load_rewards


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, check, print the summary."""
    parser = argparse.ArgumentParser(
        prog="python -m virft.data.validate", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "file",
        help="a .json, .jsonl or .parquet file, a save_to_disk folder or a Hub id; records of LLaMA-Factory, "
        "ms-swift, VLM-R1, EasyR1 or MAT too",
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--image_folder", help="where relative image paths start; default: beside the file")
    parser.add_argument(
        "--held_out", help="rows of a test or validation set that must share no image with FILE"
    )
    parser.add_argument("--task", default="detection", choices=list(TASK_REWARDS))
    parser.add_argument("--reward_funcs", nargs="+", help="rewards instead of the task's")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        check(args, Path(folder))


def check(args: argparse.Namespace, folder: Path) -> None:
    """All checks of the program; ``folder`` holds what is made of other formats. Raises UserError."""
    rows = read(args.file, args, folder)
    pictures = picture_hashes(rows, args.file)
    check_repeated(rows, pictures, args.file)
    if args.held_out:
        held_out = read(args.held_out, args, folder / "held_out")
        check_leaks(pictures, picture_hashes(held_out, args.held_out), args.file, args.held_out)
    check_boxes(rows, args.file)
    check_solutions(load_rewards(args.reward_funcs or TASK_REWARDS[args.task]), rows.remove_columns("images"))
    sys.stdout.write(summary(rows))


def read(name: str, args: argparse.Namespace, folder: Path) -> Any:
    """Rows of any format, with a line that says which one where it is another's. Raises UserError."""
    path = Path(name).expanduser()
    first = next(records(path), {}) if path.is_file() and path.suffix in RECORD_SUFFIXES else {}
    known = format_of(first)
    if known in (None, "rows"):
        return load_rows(name, args.split, args.image_folder)
    task = args.task if args.task in own_rows.TASKS else None
    images = Path(args.image_folder) if args.image_folder else path.parent
    drafts = list(own_rows.drafts(records(path), name, images.absolute(), task=task))
    target = Target.of(str(folder / "rows.jsonl"))
    write_drafts(drafts, target, {}, {})
    sys.stdout.write(f"{name}: records of the format {known!r}, checked as the rows they become\n")
    return load_rows(str(target.path))


def picture_hashes(rows: Any, name: str) -> list[list[str]]:
    """Decode every image; a digest of its pixels, whatever format holds them, for each one of each row.

    Raises:
        UserError: some cannot be decoded; names the rows.
    """
    from PIL import Image

    bad, first, hashes = [], "", []
    for number, images in enumerate(rows["images"]):
        digests = []
        for image in images:
            source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
            try:
                with Image.open(source) as opened:
                    pixels = opened.convert("RGB")
                    digests.append(hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest())
            except (OSError, ValueError) as error:
                bad.append(number)
                first = first or f"image {image['path'] or '(embedded)'} is damaged ({error})"
        hashes.append(digests)
    if bad:
        raise UserError(f"{name}: {named(bad)}: {first}")
    return hashes


def check_repeated(rows: Any, pictures: list[list[str]], name: str) -> None:
    """Raise UserError where a row asks what an earlier one asked about the same images."""
    seen: dict[Any, int] = {}
    repeated = []
    contexts = rows["context"] if "context" in rows.column_names else [None] * len(rows)
    for number, question in enumerate(zip(rows["problem"], contexts, map(tuple, pictures), strict=True)):
        if seen.setdefault(question, number) != number:
            repeated.append((number, seen[question]))
    if repeated:
        raise UserError(
            f"{name}: {named([number for number, _ in repeated])}: the same images and problem as row "
            f"{repeated[0][1]}; keep one of them"
        )


def check_leaks(pictures: list[list[str]], others: list[list[str]], name: str, other: str) -> None:
    """Raise UserError where an image of ``name`` stands in ``other`` as well."""
    where = {digest: number for number, row in enumerate(others) for digest in row}
    leaks = [(number, where[d]) for number, row in enumerate(pictures) for d in row if d in where]
    if leaks:
        numbers = sorted({number for number, _ in leaks})
        raise UserError(
            f"{name}: {named(numbers)}: the image of row {leaks[0][1]} of {other}; take it out of one set"
        )


def check_boxes(rows: Any, name: str) -> None:
    """Raise UserError where a solution's box leaves the image or is inverted.

    Boxes in ``abs_resized`` are not looked at: their bounds follow from the pixel limits of a run.
    """
    spaces = rows["coordinates"] if "coordinates" in rows.column_names else [None] * len(rows)
    for number, (solution, space, sizes) in enumerate(
        zip(rows["solution"], spaces, rows["image_sizes"], strict=True)
    ):
        space = space or ROW_SPACE
        if space == "abs_resized" or len(sizes) != 1:
            continue
        width, height = sizes[0]
        found = [detection.box for detection in parse_detections(solution).value or ()]
        grounded = parse_grounding(solution).value if not found else None
        for box in found + ([grounded] if grounded else []):
            x1, y1, x2, y2 = convert(box, space, "norm1000", (width, height))
            if not (0 <= x1 <= x2 <= 1000 and 0 <= y1 <= y2 <= 1000):
                raise UserError(
                    f"{name}: row {number}: box {[*map(float, box)]} in {space} is inverted or leaves "
                    f"the image of {width} x {height} pixels"
                )


def summary(rows: Any) -> str:
    """Counts of rows by number of images, sizes, and columns, as lines of text."""
    counts = Counter(len(sizes) for sizes in rows["image_sizes"])
    sides = [side for sizes in rows["image_sizes"] for size in sizes for side in size]
    columns = [c for c in rows.column_names if c != "image_sizes"]
    lines = [f"{len(rows)} rows, all sound", f"columns: {', '.join(columns)}"]
    lines += [f"{n} image(s): {count} rows" for n, count in sorted(counts.items())]
    if sides:
        lines.append(f"image sides: {min(sides)} to {max(sides)} pixels")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_program(main))
