"""Which boxes make a training row, and which pairs of image and category cannot be asked about at all.

"Detect all objects of the category" has a right answer only where every object has a box that can be given. A
pair of image and category with a crowd, a tiny box or too many boxes is therefore left out whole by default:
it is neither a row with boxes nor a "No Objects" row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from virft.boxes import Size
from virft.errors import UserError
from virft.types import Box

Unit = Literal["pair", "box"]
UNITS: tuple[Unit, ...] = ("pair", "box")
SMALLEST = 2.0
"""Units of the written space below which both ends of a side could round to the same number."""


@dataclass(frozen=True)
class BoxRules:
    """The rules, each a flag of the builder.

    Attributes:
        crowd: what a crowd box (COCO ``iscrowd``, VOC ``difficult``) takes out: its pair, or the box alone.
        tiny: what a tiny box takes out.
        min_side: a box is tiny when its width or height is under this many thousandths of the image's. 10
            is a third of a visual token's side (28 pixels) on an image resized to 840 pixels. A box under
            two units of the row's coordinate space is tiny whatever this says: it could round to nothing.
        max_boxes: a pair with more boxes is left out: the written answer would not fit a completion (a box is
            some 30 tokens, so 20 boxes need 600). The published ViRFT sets have at most 17. 0: no limit.
        overhang: how far a box may stick out of its image, in thousandths of the image's side, to be cut at
            the edge; one that sticks out more is wrong, not rounded.
    """

    crowd: Unit = "pair"
    tiny: Unit = "pair"
    min_side: float = 10.0
    max_boxes: int = 20
    overhang: float = 10.0

    def __post_init__(self) -> None:
        """Raises UserError for a value outside its range."""
        if not 0 <= self.min_side < math.inf:
            raise UserError("--min_side must be a number that is not negative")
        if self.max_boxes < 0 or self.overhang < 0:
            raise UserError("--max_boxes and --overhang must not be negative")


@dataclass(frozen=True, slots=True)
class RawBox:
    """A box as the source gives it: x, y, width, height in pixels, and where it stands there."""

    place: str
    xywh: tuple[float, float, float, float]
    crowd: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say of one pair.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels, cut at the image's edge; empty when the pair is left out.
        reason: why the pair is left out, "" when it is a row.
        faults: (place, what is wrong) of boxes that are wrong in the source.
    """

    boxes: tuple[Box, ...] = ()
    reason: str = ""
    faults: tuple[tuple[str, str], ...] = ()


def judge(
    boxes: Sequence[RawBox],
    size: Size,
    rules: BoxRules,
    incomplete: bool = False,
    extent: tuple[float, float] = (1000.0, 1000.0),
) -> Verdict:
    """Apply the rules to all boxes of one category in one image.

    Args:
        boxes: at least one.
        size: (width, height) of the image in pixels.
        rules: the rules.
        incomplete: the source says that not every object of the category has a box.
        extent: the image's width and height in units of the space that the row is written in.
    """
    faults = tuple((box.place, why) for box in boxes if (why := fault(box.xywh, size, rules)))
    if faults:
        return Verdict(reason="wrong_box", faults=faults)
    if incomplete:
        return Verdict(reason="incomplete")
    kept, dropped = [], ""
    for box in boxes:
        corners = _cut(box.xywh, size)
        kind = "crowd" if box.crowd else "tiny" if _is_tiny(corners, size, extent, rules) else ""
        if kind and getattr(rules, kind) == "pair":
            return Verdict(reason=kind)
        if kind:
            dropped = dropped or kind
        else:
            kept.append(corners)
    if not kept:
        return Verdict(reason=dropped)
    if rules.max_boxes and len(kept) > rules.max_boxes:
        return Verdict(reason="too_many")
    return Verdict(boxes=tuple(kept))


def fault(xywh: Sequence[float], size: Size, rules: BoxRules) -> str:
    """What is wrong with a box of the source, in words; "" when nothing is."""
    if not all(math.isfinite(value) for value in xywh):
        return f"not four finite numbers: {list(xywh)}"
    x, y, width, height = xywh
    if width < 0 or height < 0:
        return f"inverted: width {width:g}, height {height:g}"
    for start, length, side in ((x, width, size[0]), (y, height, size[1])):
        # A pixel is forgiven on any image: some tools count from 1.
        slack = max(1.0, side * rules.overhang / 1000)
        if start < -slack or start + length > side + slack or start > side:
            return (
                f"outside its image: x {x:g}, y {y:g}, width {width:g}, height {height:g} "
                f"on {size[0]} x {size[1]} pixels"
            )
    return ""


def _cut(xywh: Sequence[float], size: Size) -> Box:
    x, y, width, height = xywh
    clip = [
        min(max(v, 0.0), side) for v, side in zip((x, y, x + width, y + height), (*size, *size), strict=True)
    ]
    return Box(*(float(v) for v in clip))


def _is_tiny(box: Box, size: Size, extent: tuple[float, float], rules: BoxRules) -> bool:
    shares = ((box.x2 - box.x1) / size[0], (box.y2 - box.y1) / size[1])
    return any(
        share * 1000 < rules.min_side or share * units < SMALLEST
        for share, units in zip(shares, extent, strict=True)
    )
