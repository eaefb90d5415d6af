"""Polygons to pixels, the way LISA draws its truth: ``cv2.polylines`` + ``cv2.fillPoly``, without OpenCV.

LISA's masks, and so every published gIoU and cIoU, contain OpenCV's border pixels; Pillow's polygons differ
from them by up to a few dozen pixels a mask. OpenCV would be a dependency of 150 MB for these two calls, so
their integer arithmetic stands here: 8-connected Bresenham lines clipped to the image, and an even-odd
scan-line fill in 16-bit fixed point. Equal to OpenCV 5.0 pixel by pixel for polygons inside the image or
touching its border; for polygons that reach far outside it single pixels at the border may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Pixel = tuple[int, int]
Edge = tuple[Pixel, Pixel]
_ONE = 1 << 16  # of the fixed-point fraction


def fill_polygon(points: Sequence[Sequence[float]], width: int, height: int) -> np.ndarray:
    """The mask of one polygon, border included.

    Args:
        points: corners x, y in pixels; cut to whole pixels (towards 0) as
            ``np.array(points, dtype=np.int32)`` does.
        width, height: of the image in pixels.

    Returns:
        bool array (height, width).
    """
    import numpy as np

    mask = np.zeros((height, width), dtype=bool)
    corners = [(int(x), int(y)) for x, y in points]
    edges = list(zip(corners[-1:] + corners[:-1], corners, strict=True))
    crossings: dict[int, list[int]] = {}
    for edge in edges:
        clipped = _clip(edge, width, height)
        if clipped is not None:
            for x, y in _line(clipped):
                mask[y, x] = True
        for y, x in _crossings(edge, clipped, height):
            crossings.setdefault(y, []).append(x)
    for y, row in crossings.items():
        row.sort()
        for left, right in zip(row[::2], row[1::2], strict=False):
            # Rounded inwards: the line drawn above holds the border.
            mask[y, max((left + _ONE - 1) >> 16, 0) : max((right >> 16) + 1, 0)] = True
    return mask


def _crossings(edge: Edge, clipped: Edge | None, height: int) -> Iterator[tuple[int, int]]:
    """(row, x in fixed point) at which the edge crosses each pixel row of the image; its lower end is left
    out."""
    (x0, y0), (x1, y1) = edge
    if y0 == y1:
        return
    # OpenCV takes the slope from the clipped line, where that is not level.
    (ax, ay), (bx, by) = clipped if clipped is not None and clipped[0][1] != clipped[1][1] else edge
    slope = _divide((bx - ax) * _ONE, by - ay)
    top, bottom = min(y0, y1), max(y0, y1)
    at_x, at_y = (ax, ay) if y0 < y1 else (bx, by)
    for y in range(max(top, 0), min(bottom, height)):
        yield y, at_x * _ONE + (y - at_y) * slope


def _line(edge: Edge) -> Iterator[Pixel]:
    """The pixels of an 8-connected line, drawn from left to right."""
    (x0, y0), (x1, y1) = sorted(edge, key=lambda point: point[0])
    step = 1 if y1 >= y0 else -1
    across, down = x1 - x0, abs(y1 - y0)
    long, short = max(across, down), min(across, down)
    error, x, y = long - 2 * short, x0, y0
    for _ in range(long + 1):
        yield x, y
        turn = error < 0
        error += 2 * long * turn - 2 * short
        x += turn if across < down else 1
        y += step * (turn if across >= down else 1)


def _clip(edge: Edge, width: int, height: int) -> Edge | None:
    """The part of the edge inside the image (Cohen-Sutherland, rounded as ``cv2.clipLine``), None where
    outside."""
    (x1, y1), (x2, y2) = edge
    right, bottom = width - 1, height - 1

    def sides(x: int) -> int:
        return (x < 0) + 2 * (x > right)

    def code(x: int, y: int) -> int:
        return sides(x) + 4 * (y < 0) + 8 * (y > bottom)

    first, second = code(x1, y1), code(x2, y2)
    if first & second:
        return None
    if first & 12:
        limit = 0 if first < 8 else bottom
        x1, y1 = x1 + int((limit - y1) * (x2 - x1) / (y2 - y1)), limit
        first = sides(x1)
    if second & 12:
        limit = 0 if second < 8 else bottom
        x2, y2 = x2 + int((limit - y2) * (x2 - x1) / (y2 - y1)), limit
        second = sides(x2)
    if first & second:
        return None
    if first:
        limit = 0 if first == 1 else right
        x1, y1 = limit, y1 + int((limit - x1) * (y2 - y1) / (x2 - x1))
    if second:
        limit = 0 if second == 1 else right
        x2, y2 = limit, y2 + int((limit - x2) * (y2 - y1) / (x2 - x1))
    return (x1, y1), (x2, y2)


def _divide(numerator: int, denominator: int) -> int:
    """Integer division towards zero, as in C."""
    quotient = abs(numerator) // abs(denominator)
    return quotient if (numerator < 0) == (denominator < 0) else -quotient
