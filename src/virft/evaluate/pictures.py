"""Images with true and predicted boxes, for notebooks and reports."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virft.images import open_rgb
from virft.types import Box, Detection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRUTH_COLOR = "#2ca02c"
PREDICTED_COLOR = "#d62728"
COLUMNS = 4
PANEL_INCHES = 3.6


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: boxes are corners in pixels of the image; predicted ones carry their scores."""

    image: str | Path
    title: str
    truth: tuple[Box, ...] = ()
    predicted: tuple[Detection, ...] = ()
    reply: str = ""


def show(panels: Sequence[Panel], replies: bool = True) -> Figure:
    """A figure of the panels, up to four a row: truth green, predictions red with their scores.

    Args:
        panels: what to show; may be empty.
        replies: write the beginning of each reply below its picture.
    """
    from matplotlib.figure import Figure

    columns = max(1, min(COLUMNS, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(columns * PANEL_INCHES, rows * PANEL_INCHES * 1.25), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for place, panel in zip(axes.flat, panels, strict=False):
        _draw(place, panel, replies)
    return figure


def _draw(axes: Any, panel: Panel, reply: bool) -> None:
    axes.imshow(open_rgb(panel.image))
    # A dollar sign is text here, not the beginning of a formula.
    axes.set_title(panel.title, fontsize=9, parse_math=False)
    for box in panel.truth:
        _outline(axes, box, TRUTH_COLOR, "-")
    for detection in panel.predicted:
        _outline(axes, detection.box, PREDICTED_COLOR, "--")
        if detection.score is not None:
            axes.text(
                detection.box.x1,
                detection.box.y1,
                f"{detection.score:.2f}",
                color=PREDICTED_COLOR,
                fontsize=8,
            )
    if reply and panel.reply:
        words = textwrap.shorten(panel.reply, 180)
        axes.text(
            0.5,
            -0.02,
            "\n".join(textwrap.wrap(words, 48)),
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=6,
            parse_math=False,
        )


def _outline(axes: Any, box: Box, color: str, style: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (box.x1, box.y1), box.x2 - box.x1, box.y2 - box.y1, fill=False, color=color, linestyle=style, lw=2
        )
    )
