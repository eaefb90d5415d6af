"""Check training rows without a model: ``python -m virft.data.validate FILE [--task detection]``.

Schema, every image decoded to its last pixel, solutions readable, boxes inside their image, no question asked
twice, and the task's rewards on the solutions themselves; with ``--held_out FILE`` no image stands in both
sets. Problems are named with row numbers (counted from 0). Ends with a summary and exit code 0, or with one
error line and exit code 2.

Records of another training format (:mod:`virft.data.formats`) are read as training reads them, and the report
says which format they are in.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from virft.boxes import convert
from virft.data.coordinates import row_spaces
from virft.data.formats import USERS
from virft.data.training import load_rows
from virft.errors import UserError, named
from virft.parsing import boxes_of, parse_detections
from virft.programs import run_program
from virft.rewards import TASK_REWARDS, check_solutions, load_rewards

if TYPE_CHECKING:
    import datasets


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, check, print the summary. Raises UserError for what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m virft.data.validate", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "file",
        help="a .json, .jsonl, .csv or .parquet file, a save_to_disk folder or a Hub id; rows, or records of "
        + "; ".join(USERS.values()),
    )
    parser.add_argument("--split", default="train", help="of sources that have splits; default: train")
    parser.add_argument("--image_folder", help="where relative image paths start; default: beside the file")
    parser.add_argument(
        "--held_out", help="rows of a test or validation set that must share no image with FILE"
    )
    parser.add_argument(
        "--task", default="detection", choices=list(TASK_REWARDS), help="of rows without a column 'task'"
    )
    parser.add_argument("--reward_funcs", nargs="+", help="rewards instead of the task's")
    args = parser.parse_args(argv)
    rows = load_rows(args.file, args.split, args.image_folder)
    pictures = picture_hashes(rows, args.file)
    check_repeated(rows, pictures, args.file)
    if args.held_out:
        held_out = load_rows(args.held_out, args.split, args.image_folder)
        check_leaks(pictures, picture_hashes(held_out, args.held_out), args.file, args.held_out)
    check_boxes(rows, args.file)
    check_classes(rows, args.task, args.file)
    own = set(rows["task"]) if "task" in rows.column_names else set()
    tasks = [args.task, *(task for task in TASK_REWARDS if task in own - {args.task})]
    names = args.reward_funcs or list(dict.fromkeys(name for task in tasks for name in TASK_REWARDS[task]))
    try:
        check_solutions(load_rewards(names), rows.remove_columns("images"))
    except UserError as error:
        raise UserError(f"{args.file}: {error}") from None
    sys.stdout.write(summary(rows))


def picture_hashes(rows: datasets.Dataset, name: str) -> list[tuple[bytes, ...]]:
    """Decode every image, a file once; a digest of the pixels of each, whatever format holds them.

    Raises:
        UserError: some cannot be decoded; names the rows.
    """
    bad, first, hashes = [], "", []
    known: dict[str | bytes, bytes] = {}
    for number, images in enumerate(rows["images"]):
        digests = []
        for image in images:
            embedded = image["bytes"]
            key = image["path"] if embedded is None else hashlib.sha256(embedded).digest()
            try:
                if key not in known:
                    known[key] = _pixels_digest(image["path"] if embedded is None else io.BytesIO(embedded))
                digests.append(known[key])
            # Pillow says SyntaxError of a damaged PNG.
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                bad.append(number)
                first = first or f"image {image['path'] or '(embedded)'} is damaged ({error})"
        hashes.append(tuple(digests))
    if bad:
        raise UserError(f"{name}: {named(bad)}: {first}")
    return hashes


def _pixels_digest(source: str | io.BytesIO) -> bytes:
    from PIL import Image, ImageOps

    with Image.open(source) as opened:
        pixels = ImageOps.exif_transpose(opened).convert("RGB")
    return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).digest()


def check_repeated(rows: datasets.Dataset, pictures: Sequence[tuple[bytes, ...]], name: str) -> None:
    """Raise UserError where a row asks what an earlier one asked about the same images."""
    seen: dict[bytes, int] = {}
    repeated = []
    asked = [c for c in ("problem", "context", "system") if c in rows.column_names]
    for number, (*words, images) in enumerate(zip(*(rows[c] for c in asked), pictures, strict=True)):
        question = hashlib.sha256(repr((words, images)).encode()).digest()
        if seen.setdefault(question, number) != number:
            repeated.append((number, seen[question]))
    if repeated:
        raise UserError(
            f"{name}: {named([number for number, _ in repeated])}: the same images and problem as row "
            f"{repeated[0][1]}; keep one of them"
        )


def check_leaks(
    pictures: Sequence[tuple[bytes, ...]], others: Sequence[tuple[bytes, ...]], name: str, other: str
) -> None:
    """Raise UserError where an image of ``name`` stands in ``other`` as well."""
    where = {digest: number for number, row in enumerate(others) for digest in row}
    leaks = [(number, where[d]) for number, row in enumerate(pictures) for d in row if d in where]
    if leaks:
        numbers = sorted({number for number, _ in leaks})
        raise UserError(
            f"{name}: {named(numbers)}: the image of row {leaks[0][1]} of {other}; take it out of one set"
        )


def check_boxes(rows: datasets.Dataset, name: str) -> None:
    """Raise UserError where a solution's box leaves the image or is inverted.

    Boxes in ``abs_resized`` are not looked at: their bounds follow from the pixel limits of a run.
    """
    try:
        spaces = row_spaces(rows)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    for number, (solution, space, sizes) in enumerate(
        zip(rows["solution"], spaces, rows["image_sizes"], strict=True)
    ):
        if space == "abs_resized" or len(sizes) != 1:
            continue
        width, height = sizes[0]
        for box in boxes_of(solution):
            x1, y1, x2, y2 = convert(box, space, "norm1000", (width, height))
            # In pixels one is forgiven: some tools count from 1, and polygons are drawn on the edge.
            over_x, over_y = (0, 0) if space == "norm1000" else (1000 / width, 1000 / height)
            if not (-over_x <= x1 < x2 <= 1000 + over_x and -over_y <= y1 < y2 <= 1000 + over_y):
                raise UserError(
                    f"{name}: row {number}: box {[*map(float, box)]} in {space} is empty, inverted or "
                    f"leaves the image of {width} x {height} pixels"
                )


def check_classes(rows: datasets.Dataset, task: str, name: str) -> None:
    """Raise UserError where a row of classification, its own or the run's ``task``, has boxes for a solution:
    as text they would pass for the name of a class."""
    tasks = rows["task"] if "task" in rows.column_names else [None] * len(rows)
    bad = [
        number
        for number, (own, solution) in enumerate(zip(tasks, rows["solution"], strict=True))
        if (own or task) == "classification" and parse_detections(solution).value
    ]
    if bad:
        raise UserError(f"{name}: {named(bad)}: boxes instead of a class; is --task right?")


def summary(rows: datasets.Dataset) -> str:
    """Counts of rows by number of images, sizes, and columns, as lines of text."""
    counts = Counter(len(sizes) for sizes in rows["image_sizes"])
    sides = [side for sizes in rows["image_sizes"] for size in sizes for side in size]
    columns = [c for c in rows.column_names if c != "image_sizes"]
    lines = [rows.info.description] if rows.info.description else []
    lines += [f"{len(rows)} rows, all sound", f"columns: {', '.join(columns)}"]
    if "system" in rows.column_names:
        lines.append(f"rows with a system message of their own: {sum(map(bool, rows['system']))}")
    lines += [f"{n} image(s): {count} rows" for n, count in sorted(counts.items())]
    if sides:
        lines.append(f"image sides: {min(sides)} to {max(sides)} pixels")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_program(main))
