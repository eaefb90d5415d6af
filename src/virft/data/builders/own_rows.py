"""A user's own rows, of any known format, in the form and the coordinate space that training reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from virft import parsing
from virft.boxes import SPACES, convert
from virft.data import formats, solutions
from virft.data.builders.labelled import Draft
from virft.data.builders.readers import image_size
from virft.data.coordinates import ROW_SPACE
from virft.errors import UserError
from virft.prompts import COORDINATE_PHRASE, in_space
from virft.types import Box

TASKS = ("detection", "classification", "grounding")
"""Tasks whose solutions are read and written anew; rows of others keep theirs as they stand."""


def drafts(
    records: Iterable[Mapping[str, Any]],
    source: str,
    image_folder: Path,
    *,
    names: Mapping[str, str] | None = None,
    task: str | None = None,
    box_space: str = ROW_SPACE,
) -> Iterator[Draft]:
    """Rows from records of any format of :mod:`virft.data.formats`.

    Solutions with boxes are read by the parser of replies and written anew in thousandths, so that what
    training compares with is what the user meant.

    Args:
        records: of a file, see :func:`virft.data.builders.readers.records`.
        source: what messages call the file.
        image_folder: what image paths are relative to.
        names: our column -> theirs, for columns that no format knows.
        task: of rows that do not say it in a column ``task``.
        box_space: space of the boxes in solutions; abs_resized rows need no building, training converts them.

    Raises:
        UserError: a row that cannot be read, naming it.
    """
    if box_space not in SPACES or box_space == "abs_resized":
        raise UserError(f"--box_space {box_space}: one of norm1000, pixels, xywh")
    if task is not None and task not in TASKS:
        raise UserError(f"--task {task}: one of {', '.join(TASKS)} (leave it out for other tasks)")
    for number, record in enumerate(records):
        renamed = {**record, **{ours: record.get(theirs) for ours, theirs in (names or {}).items()}}
        for theirs in (names or {}).values():
            if theirs not in record:
                raise UserError(f"{source} row {number}: --map names the column {theirs!r}, which it lacks")
            if theirs not in (names or {}):
                renamed.pop(theirs)
        try:
            for row in formats.to_rows(renamed):
                yield _draft(row, task, box_space, image_folder)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            why = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{source} row {number}: {why}") from error


def _draft(row: dict[str, Any], task: str | None, box_space: str, image_folder: Path) -> Draft:
    images = tuple(image_folder / str(path) for path in row.pop("images"))
    task = row.get("task") or task
    if task:
        row["task"] = task
    box = row.pop("box", None) if task == "grounding" else None
    if box is not None:
        return Draft({**row, "solution": ""}, images, Box(*map(float, box)), "the row")
    if task in TASKS:
        row["solution"] = _solution(row["solution"], task, box_space, images)
    if box_space in COORDINATE_PHRASE:
        row["problem"] = in_space(row["problem"], box_space, ROW_SPACE)
    return Draft(row, images)


def _solution(text: str, task: str, box_space: str, images: tuple[Path, ...]) -> str:
    """A solution as it is written, in thousandths.

    Raises:
        ValueError: it cannot be read, or a box of it lies outside of its image.
    """
    read = {
        "detection": parsing.parse_detections,
        "classification": parsing.parse_class,
        "grounding": parsing.parse_grounding,
    }[task](text)
    if not read.ok:
        raise ValueError(
            f"its solution is not a {task} answer: {parsing.REASONS[read.reason]}: {text[:60]!r}"
        )
    if task == "classification":
        return solutions.classification(read.value)
    size = image_size(images[0]) if box_space != ROW_SPACE else None
    boxes = [found.box for found in read.value] if task == "detection" else [read.value]
    converted = [convert(box, box_space, ROW_SPACE, image_size=size) for box in boxes]
    for box, given in zip(converted, boxes, strict=True):
        # Half a thousandth is rounding.
        if not (-0.5 <= box.x1 < box.x2 <= 1000.5 and -0.5 <= box.y1 < box.y2 <= 1000.5):
            raise ValueError(
                f"its box {[round(v, 2) for v in given]} is empty, inverted or outside of its image "
                f"in {box_space}: is --box_space right?"
            )
    return solutions.detection(converted) if task == "detection" else solutions.grounding(converted[0])
