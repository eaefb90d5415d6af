"""A user's own rows, of any known format, in the form and the coordinate space that training reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from virft import parsing
from virft.boxes import convert
from virft.data import formats, solutions
from virft.data.builders.entries import image_size
from virft.data.builders.labelled import Draft
from virft.data.builders.rules import BoxRules
from virft.data.builders.table import TABLE_SPACES
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
        records: of a file, see :func:`virft.data.records.records`.
        source: what messages call the file.
        image_folder: what image paths are relative to.
        names: our column -> theirs, for columns that no format knows.
        task: of rows that do not say it in a column ``task``.
        box_space: space of the boxes in solutions, where a row does not say it in a column ``coordinates``;
            abs_resized rows need no building, training converts them.

    Raises:
        UserError: a row that cannot be read, naming it.
    """
    try:
        _check_space(box_space, "--box_space")
    except ValueError as error:
        raise UserError(str(error)) from None
    if task is not None and task not in TASKS:
        raise UserError(f"--task {task}: one of {', '.join(TASKS)} (leave it out for other tasks)")
    for number, record in enumerate(records):
        renamed = {**record, **{ours: record.get(theirs) for ours, theirs in (names or {}).items()}}
        for theirs in (names or {}).values():
            if theirs not in record:
                raise UserError(f"{source} row {number}: --map names the column {theirs!r}, which it lacks")
            if theirs not in (names or {}):
                renamed.pop(theirs)
        place = f"{source} row {number}"
        try:
            for row in formats.to_rows(renamed):
                yield _draft(row, task, box_space, image_folder, place)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None


def _draft(row: dict[str, Any], task: str | None, box_space: str, image_folder: Path, place: str) -> Draft:
    if not all(isinstance(path, str) for path in row["images"]):
        raise ValueError(f"its image must be a path or a list of paths, got {str(row['images'])[:60]}")
    images = tuple(image_folder / path for path in row.pop("images"))
    space = row.pop("coordinates", None) or box_space
    _check_space(space, "its coordinates")
    task = row.get("task") or task
    if task is not None and not isinstance(task, str):
        raise ValueError(f"its task must be text, got {task!r}")
    if task:
        row["task"] = task
    if task in TASKS:
        row["solution"] = _solution(row["solution"], task, space, images)
    elif space != ROW_SPACE:
        raise ValueError(f"its boxes are in {space}: pass --task, so that they are written in {ROW_SPACE}")
    if space in COORDINATE_PHRASE:
        row["problem"] = in_space(row["problem"], space, ROW_SPACE)
    return Draft(row, images, place=place)


def _check_space(space: str, what: str) -> None:
    if space not in TABLE_SPACES:
        raise ValueError(f"{what} {space}: one of {', '.join(TABLE_SPACES)}")


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
    if box_space != ROW_SPACE and len(images) != 1:
        raise ValueError(f"its boxes are in {box_space}, which takes one image to measure them by")
    size = image_size(images[0]) if box_space != ROW_SPACE else None
    boxes = [found.box for found in read.value] if task == "detection" else [read.value]
    converted = [convert(box, box_space, ROW_SPACE, image_size=size) for box in boxes]
    for box, given in zip(converted, boxes, strict=True):
        over = BoxRules.overhang
        if not (-over <= box.x1 < box.x2 <= 1000 + over and -over <= box.y1 < box.y2 <= 1000 + over):
            raise ValueError(
                f"its box {[round(v, 2) for v in given]} is empty, inverted or outside of its image "
                f"in {box_space}: is --box_space right?"
            )
    cut = [Box(*(min(max(value, 0.0), 1000.0) for value in box)) for box in converted]
    return solutions.detection(cut) if task == "detection" else solutions.grounding(cut[0])
