"""Overlap of areas that are not boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from virft import parsing
from virft.parsing import Polygon
from virft.rewards.detection import bounded
from virft.rewards.outcome import Outcome

if TYPE_CHECKING:
    from PIL import Image


def mask_iou(reply: str, columns: Mapping[str, Any], *, resolution: int = 512) -> Outcome:
    """IoU of the area that the reply outlines with the true one, both drawn on a grid.

    The reply's area is the union of its polygons, or of its boxes where it writes none. The true one is the
    union of the polygons in the column ``polygons`` (nested lists, in the row's coordinate space) or else
    of the solution's polygons or boxes. The grid has ``resolution`` cells along the longer side of the
    rectangle around both areas, outlines included, so the value is off by a few cells along the outline.
    Neither has an area: 1; one: 0. Source: the IoU of one image that LISA's gIoU averages (arXiv
    2308.00692).
    """
    if columns.get("polygons") is not None:
        truth = parsing.polygons_of(columns["polygons"]) if columns["polygons"] else ()
        of_column = True
    else:
        (truth, state), of_column = _outlines(columns["solution"]), False
        truth = truth if state == "ok" else None
    if truth is None:
        return Outcome(0.0, "bad_solution")
    answer, reason = _outlines(reply)
    if answer is None:
        return Outcome(0.0, reason)
    if not truth or not answer:
        if not truth and not answer:
            return Outcome(1.0, "agree_none")
        return Outcome(0.0, "missed" if truth else "false_alarm")
    value = polygon_iou(answer, truth, resolution)
    if not value:
        return Outcome(0.0, "no_match")
    boxes_only = of_column and not parsing.parse_polygons(reply).ok
    return bounded(value, "box_for_mask" if boxes_only and value < 1 else reason)


def _outlines(reply: str) -> tuple[tuple[Polygon, ...] | None, str]:
    """(polygons of a reply, "ok" or "partial"), or (None, reason); boxes become rectangles."""
    parsed = parsing.parse_polygons(reply)
    if not parsed.ok:
        reason = parsed.reason
        parsed = parsing.parse_detections(reply)
        if not parsed.ok:
            return None, reason if reason == "bad_polygon" else parsed.reason
        corners = [d.box for d in parsed.value if d.box.x1 < d.box.x2 and d.box.y1 < d.box.y2]
        if parsed.value and not corners:
            return None, "no_polygon"
        outlines = tuple(((x1, y1), (x2, y1), (x2, y2), (x1, y2)) for x1, y1, x2, y2 in corners)
    else:
        outlines = parsed.value
    return outlines, "partial" if parsed.notes else "ok"


def polygon_iou(first: Sequence[Polygon], second: Sequence[Polygon], resolution: int) -> float:
    """IoU of two unions of polygons, both drawn on one grid around them."""
    from PIL import ImageChops

    points = [point for polygon in (*first, *second) for point in polygon]
    left, top = min(x for x, _ in points), min(y for _, y in points)
    extent = max(max(x for x, _ in points) - left, max(y for _, y in points) - top)
    scale = (resolution - 1) / extent if extent > 0 else 0.0
    a, b = (_drawn(polygons, left, top, scale, resolution) for polygons in (first, second))
    union = _area(ImageChops.logical_or(a, b))
    return _area(ImageChops.logical_and(a, b)) / union if union else 0.0


def _drawn(
    polygons: Sequence[Polygon], left: float, top: float, scale: float, resolution: int
) -> Image.Image:
    from PIL import Image, ImageDraw

    image = Image.new("1", (resolution, resolution))
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        draw.polygon([((x - left) * scale, (y - top) * scale) for x, y in polygon], fill=1, outline=1)
    return image


def _area(image: Image.Image) -> int:
    return sum(image.histogram()[1:])
