"""Overlap of areas that are not boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor
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
    rectangle around the true area, outlines included, so the value is off by a few cells along the outline;
    see :func:`polygon_iou` for what lies outside. Neither has an area: 1; one: 0.
    Source: the IoU of one image that LISA's gIoU averages (arXiv 2308.00692).
    """
    of_column = columns.get("polygons") is not None
    truth = _truth(columns)
    if truth is None:
        return Outcome(0.0, "bad_solution")
    answer, reason = _outlines(reply)
    if answer is None:
        return Outcome(0.0, reason)
    if not truth:
        return Outcome(0.0, "false_alarm") if answer else Outcome(1.0, "agree_none")
    if not answer:
        return Outcome(0.0, "missed")
    value = polygon_iou(answer, truth, resolution)
    if not value:
        return Outcome(0.0, "no_match")
    boxes_only = of_column and not parsing.parse_polygons(reply).ok
    return bounded(value, "box_for_mask" if boxes_only and value < 1 else reason)


def _truth(columns: Mapping[str, Any]) -> tuple[Polygon, ...] | None:
    """The polygons of the true area, of the column ``polygons`` or else of the solution; None: unreadable."""
    column = columns.get("polygons")
    if column is not None:
        return parsing.polygons_of(column) if column else ()
    truth, state = _outlines(columns["solution"])
    return truth if state == "ok" else None


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


def polygon_iou(answer: Sequence[Polygon], truth: Sequence[Polygon], resolution: int) -> float:
    """IoU of two unions of polygons, drawn on a grid around the true one.

    What of the answer lies outside of that grid is measured on another one, around both: were there a single
    grid around both, a polygon far away would make its cells so large that anything near the truth meets it.
    """
    from PIL import ImageChops

    near = _Grid(truth, resolution)
    a, b = near.drawn(answer), near.drawn(truth)
    union = near.area(ImageChops.logical_or(a, b))
    far = _Grid((*answer, *truth), resolution)
    if far.bounds != near.bounds:
        union += far.area(far.drawn(answer, without=near.bounds))
    return near.area(ImageChops.logical_and(a, b)) / union


class _Grid:
    """Square cells over the rectangle around polygons, ``resolution`` of them along its longer side."""

    def __init__(self, polygons: Sequence[Polygon], resolution: int) -> None:
        xs, ys = zip(*(point for polygon in polygons for point in polygon), strict=True)
        self.bounds = min(xs), min(ys), max(xs), max(ys)
        sides = self.bounds[2] - self.bounds[0], self.bounds[3] - self.bounds[1]
        self.scale = (resolution - 1) / (max(sides) or 1.0)
        self.size = tuple(round(side * self.scale) + 1 for side in sides)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        return (x - self.bounds[0]) * self.scale, (y - self.bounds[1]) * self.scale

    def drawn(
        self, polygons: Sequence[Polygon], without: tuple[float, float, float, float] | None = None
    ) -> Image.Image:
        """The cells that the polygons cover, their outlines included; none that touch ``without``."""
        from PIL import Image, ImageDraw

        image = Image.new("1", self.size)
        draw = ImageDraw.Draw(image)
        for polygon in polygons:
            draw.polygon([self._place(x, y) for x, y in polygon], fill=1, outline=1)
        if without is not None:
            (x1, y1), (x2, y2) = self._place(*without[:2]), self._place(*without[2:])
            draw.rectangle((floor(x1), floor(y1), ceil(x2), ceil(y2)), fill=0)
        return image

    def area(self, image: Image.Image) -> float:
        """Area of the cells that are set, in the polygons' own units."""
        return sum(image.histogram()[1:]) / self.scale**2
