"""Check training rows without a model: ``python -m virft.data.validate FILE [--task detection]``.

Schema, every image decoded to its last pixel, solutions readable, and the task's rewards on the solutions
themselves; problems are named with row numbers (counted from 0). Ends with a summary and exit code 0, or with
one error line and exit code 2.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from virft.data.training import load_rows, named
from virft.errors import UserError, run_program
from virft.rewards import TASK_REWARDS, check_solutions, load_rewards


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, check, print the summary."""
    parser = argparse.ArgumentParser(
        prog="python -m virft.data.validate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("file", help="a .json, .jsonl or .parquet file, a save_to_disk folder or a Hub id")
    parser.add_argument("--split", default="train")
    parser.add_argument("--image_folder", help="where relative image paths start; default: beside the file")
    parser.add_argument("--task", default="detection", choices=list(TASK_REWARDS))
    parser.add_argument("--reward_funcs", nargs="+", help="rewards instead of the task's")
    args = parser.parse_args(argv)
    rows = load_rows(args.file, args.split, args.image_folder)
    decode_all(rows, args.file)
    check_solutions(load_rewards(args.reward_funcs or TASK_REWARDS[args.task]), rows.remove_columns("images"))
    sys.stdout.write(summary(rows))


def decode_all(rows: Any, name: str) -> None:
    """Decode every image.

    Raises:
        UserError: some cannot be decoded; names the rows.
    """
    from PIL import Image

    bad, first = [], ""
    for number, images in enumerate(rows["images"]):
        for image in images:
            source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
            try:
                with Image.open(source) as opened:
                    opened.load()
            except (OSError, ValueError) as error:
                bad.append(number)
                first = first or f"image {image['path'] or '(embedded)'} is damaged ({error})"
    if bad:
        raise UserError(f"{name}: {named(bad)}: {first}")


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
