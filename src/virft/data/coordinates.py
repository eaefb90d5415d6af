"""Training rows in the coordinate space that the model writes: prompt, solution and taught replies."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import TYPE_CHECKING

from virft.boxes import MODEL_SPACES, SPACES, convert, resized
from virft.data.solutions import detection_answer, grounding_answer, tagged
from virft.errors import UserError
from virft.parsing import parse_detections, parse_grounding
from virft.prompts import COORDINATE_PHRASE, in_space
from virft.types import Box, Detection

if TYPE_CHECKING:
    import datasets

ROW_SPACE = "norm1000"
"""The space of rows that do not say otherwise in a column ``coordinates``."""

REPLY_COLUMNS = ("solution", "completion")


def row_spaces(rows: datasets.Dataset) -> list[str]:
    """The space of every row's boxes: its column ``coordinates``, else :data:`ROW_SPACE`.

    Raises:
        UserError: a space that is none of :data:`virft.boxes.SPACES`, naming the row.
    """
    if "coordinates" not in rows.column_names:
        return [ROW_SPACE] * len(rows)
    spaces = [space or ROW_SPACE for space in rows["coordinates"]]
    for number, space in enumerate(spaces):
        if space not in SPACES:
            raise UserError(f"row {number}: coordinates {space!r} unknown; choose from {', '.join(SPACES)}")
    return spaces


def convert_rows(
    rows: datasets.Dataset,
    target: str,
    min_pixels: int,
    max_pixels: int,
    columns: Sequence[str] = REPLY_COLUMNS,
) -> datasets.Dataset:
    """Rows with every box, and the prompt's words about coordinates, in ``target``.

    Args:
        rows: from :func:`virft.data.training.load_rows`; a column ``coordinates`` names the space of a row.
        target: a member of :data:`virft.boxes.MODEL_SPACES`.
        min_pixels, max_pixels: the processor's area limits, which decide the size that ``abs_resized`` means.
        columns: texts that end in an answer, converted where they hold boxes. Boxes are rounded to integers.

    Raises:
        UserError: a row in an unknown space, or with boxes but without exactly one image to measure them by.
    """
    if target not in MODEL_SPACES:
        raise UserError(f"--coordinates {target!r} is unknown; choose one of {', '.join(MODEL_SPACES)}")
    sources = row_spaces(rows)
    if all(source == target for source in sources):
        return rows
    sizes = rows["image_sizes"]
    texts = {c: list(rows[c]) for c in ("problem", *columns) if c in rows.column_names}
    for number, source in enumerate(sources):
        size = sizes[number][0] if len(sizes[number]) == 1 else None
        for column, values in texts.items():
            if column == "problem":
                if source in COORDINATE_PHRASE:
                    values[number] = in_space(values[number], source, target)
                continue
            try:
                values[number] = values[number] and convert_answer(
                    values[number], source, target, size, min_pixels, max_pixels
                )
            except ValueError as error:
                raise UserError(f"row {number}: {column} cannot be converted to {target}: {error}") from None
    if "coordinates" in rows.column_names:
        texts["coordinates"] = [target] * len(sources)
    for column, values in texts.items():
        feature = rows.features[column]
        rows = rows.remove_columns(column).add_column(column, values, feature=feature)
    return rows


def convert_answer(
    text: str, source: str, target: str, image_size: Sequence[int] | None, min_pixels: int, max_pixels: int
) -> str:
    """A text that ends in ``<answer>...</answer>`` with the answer's boxes in another space.

    Answers that hold no box (a class name, "No Objects") come back unchanged. Corners are rounded to whole
    numbers; a side that would vanish keeps one, and of boxes that become the same the first stays, for no
    reply could match an empty box or the same one twice.

    Args:
        image_size: [width, height] of the original image in pixels, None where there is not exactly one.

    Raises:
        ValueError: boxes, but no image to measure them by.
    """
    detections, grounded = parse_detections(text), parse_grounding(text)
    boxes = detections.value if detections.ok else (Detection(grounded.value),) if grounded.ok else ()
    if source == target or not boxes:
        return text
    if image_size is None:
        raise ValueError("boxes need exactly one image")
    size = (image_size[0], image_size[1])
    model_size = resized(size, min_pixels, max_pixels)
    moved: dict[Box, Detection] = {}
    for d in boxes:
        box = _whole(convert(d.box, source, target, size, model_size))
        moved.setdefault(box, Detection(box, d.score))
    first, *_ = moved
    answer = detection_answer([*moved.values()]) if detections.ok else grounding_answer(first)
    return text.rpartition("<answer>")[0] + tagged(answer)


def _whole(box: Box) -> Box:
    x1, x2 = _whole_side(box.x1, box.x2)
    y1, y2 = _whole_side(box.y1, box.y2)
    return Box(x1, y1, x2, y2)


def _whole_side(low: float, high: float) -> tuple[float, float]:
    """Two edges in whole numbers, one apart where they would meet; inverted ones stay so, to be found."""
    first, second = round(low), round(high)
    if low < high and first == second:
        first = floor(low)
        second = first + 1
    return float(first), float(second)
