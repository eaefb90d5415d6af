"""Boxes: overlap, matching, and the named coordinate spaces with their conversions. Pure Python.

Spaces (the only place where they are defined and converted):

============  ==========================================================================================
norm1000      x1, y1, x2, y2 in thousandths of the image's width and height (Qwen2-VL, Qwen3-VL)
abs_resized   x1, y1, x2, y2 in pixels of the image as the processor resized it for the model (Qwen2.5-VL)
pixels        x1, y1, x2, y2 in pixels of the original image
xywh          x, y, width, height in pixels of the original image (COCO and LVIS files)
============  ==========================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from virft.errors import UserError
from virft.types import Box

SPACES = ("norm1000", "abs_resized", "pixels", "xywh")
MODEL_SPACES = ("norm1000", "abs_resized")
"""The spaces in which a model can be asked to write boxes."""

FAMILY_SPACE: Mapping[str, str] = MappingProxyType(
    {"qwen2_vl": "norm1000", "qwen2_5_vl": "abs_resized", "qwen3_vl": "norm1000"}
)
"""``config.model_type`` -> the space that the family was pre-trained to write."""

Size = tuple[int, int]

TOKEN_SIDE = 28
"""Pixels of a visual token's side in both families: patch 14 x merge 2."""


def area(box: Sequence[float]) -> float:
    """Area of x1, y1, x2, y2; 0 where a corner pair is inverted."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def intersection(a: Sequence[float], b: Sequence[float]) -> float:
    """Area common to two boxes x1, y1, x2, y2 of one space."""
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union in [0, 1] of two boxes x1, y1, x2, y2; 0 where the union is empty."""
    common = intersection(a, b)
    union = area(a) + area(b) - common
    return common / union if union > 0 else 0.0


def giou(a: Sequence[float], b: Sequence[float]) -> float:
    """Generalised IoU in [-1, 1] (arXiv 1902.09630, algorithm 1); 0 where both boxes are empty."""
    hull = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    if hull <= 0:
        return 0.0
    common = intersection(a, b)
    union = area(a) + area(b) - common
    return (common / union if union > 0 else 0.0) - (hull - union) / hull


def greedy_match(
    predictions: Sequence[Sequence[float]], truths: Sequence[Sequence[float]], threshold: float
) -> list[tuple[int | None, float]]:
    """Match predictions, in the order given, each to its best truth still free (paper sec. 3.2).

    Args:
        predictions: boxes, most confident first.
        truths: boxes of the same space.
        threshold: a match needs IoU > threshold, strictly.

    Returns:
        For each prediction (index of its truth, IoU), or (None, 0.0) where it matched none.
    """
    free = list(range(len(truths)))
    matches: list[tuple[int | None, float]] = []
    for box in predictions:
        best, overlap = None, 0.0
        for index in free:
            value = iou(box, truths[index])
            if value > overlap:
                best, overlap = index, value
        if best is not None and overlap > threshold:
            free.remove(best)
            matches.append((best, overlap))
        else:
            matches.append((None, 0.0))
    return matches


def coco_match(
    overlaps: Sequence[Sequence[float]],
    threshold: float,
    ignored: Sequence[bool] = (),
    crowds: Sequence[bool] = (),
) -> list[int | None]:
    """Match predictions, in the order given, each to its best truth still free, by COCO's rules.

    The rules: IoU >= threshold; of equal overlaps the later truth; an ignored truth only where no other fits;
    a crowd may be taken again and again. Source: ``evaluateImg`` of pycocotools.

    Args:
        overlaps: a row for each prediction, most confident first, with its IoU with each truth (with a crowd
            the share of the prediction that lies in it).
        threshold: a match needs IoU >= threshold.
        ignored: for each truth, whether a match counts neither for nor against; empty for none.
        crowds: for each truth, whether it is a crowd; empty for none.

    Returns:
        For each prediction the index of its truth, or None.
    """
    count = len(overlaps[0]) if overlaps else 0
    order = sorted(range(count), key=ignored.__getitem__) if any(ignored) else range(count)
    taken: set[int] = set()
    matches: list[int | None] = []
    for row in overlaps:
        best = None
        for truth in order:
            if truth in taken and not (crowds and crowds[truth]):
                continue
            if best is not None and ignored and ignored[truth] and not ignored[best]:
                break
            if row[truth] >= threshold and (best is None or row[truth] >= row[best]):
                best = truth
        if best is not None:
            taken.add(best)
        matches.append(best)
    return matches


def convert(
    values: Sequence[float],
    source: str,
    target: str,
    image_size: Size | None = None,
    model_size: Size | None = None,
) -> Box:
    """Four numbers of one space in another, without rounding or clipping.

    Args:
        values: four numbers in ``source``.
        source, target: members of :data:`SPACES`.
        image_size: (width, height) of the original image; needed where pixels or xywh meet another space.
        model_size: (width, height) of the resized image; needed where abs_resized takes part.

    Raises:
        ValueError: an unknown space, or a size that the conversion needs is missing or not positive.
    """
    for space in (source, target):
        if space not in SPACES:
            raise ValueError(f"unknown coordinate space {space!r}; known: {', '.join(SPACES)}")
    x1, y1, x2, y2 = (float(v) for v in values)
    if source == target:
        return Box(x1, y1, x2, y2)
    if source == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    if {source, target} == {"pixels", "xywh"}:
        from_x = from_y = to_x = to_y = 1.0  # both in pixels of the original image, whatever its size
    else:
        from_x, from_y = _extent(source, image_size, model_size)
        to_x, to_y = _extent(target, image_size, model_size)
    # Multiply before dividing: whole numbers of a space come back whole after a round trip.
    x1, x2 = (v * to_x / from_x if from_x != to_x else v for v in (x1, x2))
    y1, y2 = (v * to_y / from_y if from_y != to_y else v for v in (y1, y2))
    if target == "xywh":
        x2, y2 = x2 - x1, y2 - y1
    return Box(x1, y1, x2, y2)


def _extent(space: str, image_size: Size | None, model_size: Size | None) -> tuple[float, float]:
    if space == "norm1000":
        return 1000.0, 1000.0
    name, size = ("model_size", model_size) if space == "abs_resized" else ("image_size", image_size)
    if size is None or min(size) <= 0:
        raise ValueError(f"coordinate space {space} needs {name} (width, height), got {size!r}")
    return float(size[0]), float(size[1])


def same_shape(first: Size, second: Size) -> bool:
    """Whether one image may be a smaller or larger copy of the other: neither turned nor another one.

    Sides may be off by one pixel of rounding and by 2 % beside it.
    """
    ratio = first[0] * second[1] / (first[1] * second[0])
    return abs(ratio - 1) <= 0.02 + 1 / min(*first, *second)


def check_pixel_limits(min_pixels: int, max_pixels: int) -> None:
    """Refuse limits of an image's area that contradict each other.

    Raises:
        UserError: naming both flags.
    """
    if not 0 < min_pixels <= max_pixels:
        raise UserError(f"--min_pixels {min_pixels} must be positive and not above --max_pixels {max_pixels}")


def resized(image_size: Size, min_pixels: int, max_pixels: int, factor: int = TOKEN_SIDE) -> Size:
    """(width, height) to which Qwen2-VL's and Qwen2.5-VL's image processors resize an image.

    Both sides become multiples of ``factor``, the area lies within the two limits, the
    aspect ratio is kept as nearly as that allows (the families' ``smart_resize``; a test compares with it).

    Raises:
        ValueError: a side that is not positive, or an aspect ratio above 200, which the processor refuses.
    """
    width, height = image_size
    if min(width, height) <= 0 or max(width, height) / min(width, height) > 200:
        raise ValueError(f"image of {width} x {height} pixels: sides must be positive and within 200:1")
    w, h = round(width / factor) * factor, round(height / factor) * factor
    if w * h > max_pixels:
        scale = math.sqrt(width * height / max_pixels)
        w = max(factor, math.floor(width / scale / factor) * factor)
        h = max(factor, math.floor(height / scale / factor) * factor)
    elif w * h < min_pixels:
        scale = math.sqrt(min_pixels / (width * height))
        w = math.ceil(width * scale / factor) * factor
        h = math.ceil(height * scale / factor) * factor
    return w, h
