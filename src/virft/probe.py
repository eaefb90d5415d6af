"""Do replies contradict the declared coordinate space? A look at the first rollouts of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from virft.boxes import convert, iou, resized
from virft.parsing import boxes_of

CANDIDATES = ("norm1000", "abs_resized", "pixels")
ENOUGH = 16
"""Replies with boxes that the probe waits for."""
MARGIN = 0.15
"""How much better the boxes must fit in another space, in mean IoU, to be worth a warning."""


class SpaceProbe:
    """Compares, over the first replies with boxes, how well they fit the truth in each space.

    Args:
        space: the declared one, in which solutions are written.
        min_pixels, max_pixels: the processor's area limits.
    """

    def __init__(self, space: str, min_pixels: int, max_pixels: int) -> None:
        self.space, self.limits = space, (min_pixels, max_pixels)
        self.fits: dict[str, list[float]] = {name: [] for name in CANDIDATES}
        self.outside = 0

    @property
    def done(self) -> bool:
        """Whether enough replies were seen."""
        return len(self.fits[self.space]) >= ENOUGH

    def look(self, rows: Sequence[Mapping[str, Any]], replies: Sequence[str]) -> None:
        """Take in replies to rows (``solution``, ``image_sizes``); those without boxes do not count."""
        for row, reply in zip(rows, replies, strict=True):
            sizes = row.get("image_sizes") or ()
            solution = row.get("solution")  # of the user's own rewards it may be anything
            if len(sizes) != 1 or not isinstance(solution, str):
                continue
            said, truth = boxes_of(reply), boxes_of(solution)
            if not said or not truth:
                continue
            size = (sizes[0][0], sizes[0][1])
            model_size = resized(size, *self.limits)
            truth = [convert(box, self.space, "pixels", size, model_size) for box in truth]
            for name, fits in self.fits.items():
                seen = [convert(box, name, "pixels", size, model_size) for box in said]
                fits.append(sum(max(iou(box, other) for other in truth) for box in seen) / len(seen))
            inside = [convert(box, self.space, "norm1000", size, model_size) for box in said]
            self.outside += any(max(box) > 1000 or min(box) < 0 for box in inside)

    def verdict(self) -> str | None:
        """A warning, or None where nothing contradicts the declared space."""
        count = len(self.fits[self.space])
        if not count:
            return None
        means = {name: sum(values) / count for name, values in self.fits.items()}
        best = max(means, key=means.get)
        if means[best] - means[self.space] >= MARGIN:
            return (
                f"the replies fit the truth better as {best} (mean IoU {means[best]:.2f}) than as "
                f"{self.space} ({means[self.space]:.2f}), which this run declares; check --coordinates"
            )
        if self.outside * 2 > count:
            return (
                f"{self.outside} of {count} replies with boxes lie outside of the image in {self.space}, "
                "which this run declares; check --coordinates"
            )
        return None
