"""Reader of tables of boxes: CSV, JSON or JSONL, one box a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from virft.boxes import convert
from virft.data.builders.entries import (
    BoxEntry,
    CategoryEntry,
    Entry,
    ImageEntry,
    category_name,
    image_size,
    side_of,
)
from virft.data.records import four_numbers, records
from virft.errors import UserError

CORNER_COLUMNS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
)
SIZED_COLUMNS = (("x", "y", "width", "height"), ("x", "y", "w", "h"))
BOX_COLUMNS = ("bbox", "box", "bbox_2d")
TABLE_SPACES = ("pixels", "norm1000", "xywh")
"""Spaces of corners and lists; x, y and sizes are always xywh."""
CATEGORY_COLUMNS = ("category", "label", "class", "name")
IMAGE_COLUMNS = ("image", "image_path", "file_name", "filename", "path")


def table(path: Path, image_folder: Path, box_space: str = "pixels", **_: Any) -> Iterator[Entry]:
    """A table of boxes, one a row: CSV with a header, JSON (a list of objects) or JSONL.

    Columns: the image (one of :data:`IMAGE_COLUMNS`), the category (:data:`CATEGORY_COLUMNS`), and the box:
    four corner columns, x, y and sizes, or one list of four. A row whose category is empty is an image
    without objects. ``image_width`` and ``image_height`` save reading the sizes from the images.

    Args:
        path: the file.
        image_folder: folder that image paths are relative to.
        box_space: space of corners and lists, a member of :data:`TABLE_SPACES`.

    Raises:
        UserError: a column is missing or a value is not a number, naming the row.
    """
    images: dict[str, tuple[int, int]] = {}
    names: set[str] = set()
    for number, row in enumerate(records(path)):
        try:
            image = _column(row, IMAGE_COLUMNS, "the image")
            if not isinstance(image, str) or not image.strip():
                raise ValueError(f"its image must be a path, got {image!r}")
            if image not in images:
                images[image] = _table_size(image_folder / image, row)
                yield ImageEntry(image, image, *images[image])
            name = _column(row, CATEGORY_COLUMNS, "the category")
            if name in (None, ""):
                continue
            name = category_name(name)
        except ValueError as error:
            raise _at_row(error, path, number) from None
        if name not in names:
            names.add(name)
            yield CategoryEntry(name, name)
        try:
            values, space = _table_box(row, box_space)
            xywh = convert(values, space, "xywh", image_size=images[image])
        except ValueError as error:
            raise _at_row(error, path, number) from None
        yield BoxEntry(f"row {number}", image, name, xywh)


def _at_row(error: ValueError, path: Path, number: int) -> UserError:
    return UserError(f"{path} row {number}: {error}")


def _table_size(image: Path, row: Mapping[str, Any]) -> tuple[int, int]:
    width, height = side_of(row.get("image_width") or None), side_of(row.get("image_height") or None)
    return (width, height) if width and height else image_size(image)


def _table_box(row: Mapping[str, Any], space: str) -> tuple[Sequence[float], str]:
    for columns in CORNER_COLUMNS:
        if all(column in row for column in columns):
            return four_numbers([row[column] for column in columns]), space
    for columns in SIZED_COLUMNS:
        if all(column in row for column in columns):
            return four_numbers([row[column] for column in columns]), "xywh"
    for column in BOX_COLUMNS:
        if column in row:
            value = row[column]
            return four_numbers(value.strip(" []()").split(",") if isinstance(value, str) else value), space
    raise ValueError(f"no box: columns x1, y1, x2, y2, or x, y, width, height, or {', '.join(BOX_COLUMNS)}")


def _column(row: Mapping[str, Any], columns: tuple[str, ...], what: str) -> Any:
    for column in columns:
        if column in row:
            return row[column]
    raise ValueError(f"no column for {what}: one of {', '.join(columns)}, but it has {', '.join(row)}")
