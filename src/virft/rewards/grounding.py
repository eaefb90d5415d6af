"""The grounding reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from virft import boxes, parsing
from virft.rewards.outcome import Outcome


def accuracy_grounding(reply: str, columns: Mapping[str, Any]) -> Outcome:
    """Generalised IoU + 1, in [0, 2] (arXiv 1902.09630), of the one box asked for.

    Corners must be ordered (x1 <= x2, y1 <= y2), else 0. A box equal to the truth earns 2 even without an
    area.
    """
    truth = parsing.parse_grounding(columns["solution"])
    if not truth.ok or truth.notes or not _ordered(truth.value):
        return Outcome(0.0, "bad_solution")
    answer = parsing.parse_grounding(reply)
    if not answer.ok:
        return Outcome(0.0, answer.reason)
    if not _ordered(answer.value):
        return Outcome(0.0, "inverted_box")
    if answer.value == truth.value:
        return Outcome(2.0)
    value = boxes.giou(answer.value, truth.value) + 1.0
    return Outcome(min(2.0, max(0.0, value)), "partial" if answer.notes else "ok")


def _ordered(box: tuple[float, float, float, float]) -> bool:
    return box[0] <= box[2] and box[1] <= box[3]
