"""Detection rewards of Visual-RFT (arXiv 2503.01785, sec. 3): how well boxes overlap, how well confidence
fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from virft import boxes, parsing
from virft.rewards.outcome import Outcome
from virft.types import Box, Detection


@dataclass(frozen=True, slots=True)
class Case:
    """A reply and its solution, both read.

    Attributes:
        predictions: the reply's boxes, repeated boxes dropped (first kept), most confident first; equal
            confidences keep the order written, boxes without a confidence come last.
        truths: the solution's boxes, repeated ones included.
        reason: "ok", or "partial" when parts of the reply were dropped.
    """

    predictions: tuple[Detection, ...]
    truths: tuple[Box, ...]
    reason: str


def ranked(detections: Sequence[Detection]) -> tuple[Detection, ...]:
    """Detections without repeated boxes (equal numbers; the first is kept), most confident first."""
    first: dict[Box, Detection] = {}
    for detection in detections:
        first.setdefault(detection.box, detection)
    return tuple(sorted(first.values(), key=lambda d: -1.0 if d.score is None else d.score, reverse=True))


def read_case(reply: str, columns: Mapping[str, Any]) -> Case | Outcome:
    """Read a reply and the row's solution; an Outcome where that alone decides.

    Unreadable reply: 0 with the reader's code. Solution without boxes: 1 for an answer without boxes, else 0
    (whatever the confidences). Answer without boxes to a solution with some: 0.
    """
    truth = parsing.parse_detections(columns["solution"])
    if not truth.ok or truth.notes:
        return Outcome(0.0, "bad_solution")
    answer = parsing.parse_detections(reply)
    if not answer.ok:
        return Outcome(0.0, answer.reason)
    if not truth.value:
        return Outcome(0.0, "false_alarm") if answer.value else Outcome(1.0, "agree_none")
    if not answer.value:
        return Outcome(0.0, "missed")
    return Case(
        ranked(answer.value),
        tuple(detection.box for detection in truth.value),
        "partial" if answer.notes else "ok",
    )


def bounded(value: float, reason: str = "ok") -> Outcome:
    """An outcome in [0, 1]: sums of ratios may leave it by a rounding error."""
    return Outcome(min(1.0, max(0.0, value)), reason)


def denominator_of(case: Case, denominator: str) -> int:
    """``max``: the larger of the numbers of boxes (the reference's code); ``paper``: that of predictions."""
    predicted = len(case.predictions)
    return predicted if denominator == "paper" else max(predicted, len(case.truths))


def accuracy_iou(
    reply: str, columns: Mapping[str, Any], *, threshold: float = 0.5, denominator: str = "max"
) -> Outcome:
    """Sum of the IoU of matched boxes / number of boxes, in [0, 1] (paper sec. 3).

    Predictions, most confident first, each take their best free truth; a match needs IoU > ``threshold``.
    """
    case = read_case(reply, columns)
    if isinstance(case, Outcome):
        return case
    matches = boxes.greedy_match([d.box for d in case.predictions], case.truths, threshold)
    if all(truth is None for truth, _ in matches):
        return Outcome(0.0, "no_match")
    total = sum(overlap for _, overlap in matches)
    return bounded(total / denominator_of(case, denominator), case.reason)


def accuracy_confidence(reply: str, columns: Mapping[str, Any], *, threshold: float = 0.5) -> Outcome:
    """Mean over predictions of (c if matched else 1 - c), in [0, 1] (paper sec. 3).

    Matching as in :func:`accuracy_iou`. A prediction without a confidence earns 0.
    """
    case = read_case(reply, columns)
    if isinstance(case, Outcome):
        return case
    if all(d.score is None for d in case.predictions):
        return Outcome(0.0, "no_confidence")
    matches = boxes.greedy_match([d.box for d in case.predictions], case.truths, threshold)
    earned = [
        0.0 if d.score is None else d.score if truth is not None else 1.0 - d.score
        for d, (truth, _) in zip(case.predictions, matches, strict=True)
    ]
    return bounded(sum(earned) / len(earned), case.reason)
