"""Further rewards on boxes: other overlaps, matchings, schedules and confidence rules, each with its source.

All read replies and solutions as :mod:`virft.rewards.detection` does: repeated boxes are dropped, a
solution and a reply without boxes agree (1), one of them without boxes earns 0. All lie in [0, 1]; the
solution itself earns 1. P and T are the numbers of predicted and true boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from virft import boxes
from virft.rewards.detection import Case, accuracy_iou, bounded, denominator_of, read_case
from virft.rewards.outcome import Outcome
from virft.types import Box


def _overlaps(case: Case, threshold: float) -> list[float]:
    """IoU of each prediction with the truth that it takes, 0 where it takes none."""
    matches = boxes.greedy_match([d.box for d in case.predictions], case.truths, threshold)
    return [overlap if truth is not None else 0.0 for truth, overlap in matches]


def iou_squared(
    reply: str, columns: Mapping[str, Any], *, threshold: float = 0.5, denominator: str = "max"
) -> Outcome:
    """Sum of the squared IoU of matched boxes / number of boxes.

    sum(IoU^2) / max(P, T), matched as in ``accuracy_iou``: its square makes the last bit of tightness worth
    more than the first (d IoU^2 = 2 IoU d IoU), where the plain IoU is content with about right.
    Source: the paper's IoU reward (arXiv 2503.01785, sec. 3) with IoU replaced by its square.
    """
    case = read_case(reply, columns)
    if isinstance(case, Outcome):
        return case
    total = sum(overlap**2 for overlap in _overlaps(case, threshold))
    return bounded(total / denominator_of(case, denominator), case.reason if total else "no_match")


def scheduled_iou(
    reply: str,
    columns: Mapping[str, Any],
    *,
    start: float = 0.5,
    end: float = 0.9,
    denominator: str = "max",
) -> Outcome:
    """``accuracy_iou`` with a threshold that rises linearly over the training.

    threshold = start + (end - start) * global_step / max_steps, from the ``trainer_state`` that TRL hands to
    rewards; ``start`` outside of a training. Source: the stepwise schedules of Vision-R1 (arXiv 2503.18013,
    progressive rule refinement) and V-Triune (arXiv 2505.18129, dynamic IoU), here without steps.
    """
    state = columns.get("trainer_state")
    last = getattr(state, "max_steps", 0) or 0
    progress = min(1.0, max(0.0, getattr(state, "global_step", 0) / last)) if last > 0 else 0.0
    threshold = start + (end - start) * progress
    return accuracy_iou(reply, columns, threshold=threshold, denominator=denominator)


def brier_confidence(reply: str, columns: Mapping[str, Any], *, threshold: float = 0.5) -> Outcome:
    """Mean over predictions of 1 - (c - m)^2, m = 1 where matched, else 0.

    One less the Brier score (G. W. Brier, Monthly Weather Review 78, 1950): a proper score, whose
    expectation is highest where c is the probability of a match. The paper's linear rule is highest at 0 or
    1. A prediction without a confidence earns 0.
    """
    case = read_case(reply, columns)
    if isinstance(case, Outcome):
        return case
    if all(d.score is None for d in case.predictions):
        return Outcome(0.0, "no_confidence")
    earned = [
        0.0 if d.score is None else 1.0 - (d.score - (overlap > 0)) ** 2
        for d, overlap in zip(case.predictions, _overlaps(case, threshold), strict=True)
    ]
    return bounded(sum(earned) / len(earned), case.reason)


def count(reply: str, columns: Mapping[str, Any]) -> Outcome:
    """min(P, T) / max(P, T): how near the number of boxes is, wherever they lie.

    Source: none; one less the relative error of the count, |P - T| / max(P, T), the graded form of the usual
    reward for an exact count.
    """
    case = read_case(reply, columns)
    if isinstance(case, Outcome):
        return case
    predicted, true = len(case.predictions), len(case.truths)
    return bounded(min(predicted, true) / max(predicted, true), case.reason)


def weighted_sum(
    reply: str,
    columns: Mapping[str, Any],
    *,
    threshold: float = 0.5,
    position: float = 0.7,
    completeness: float = 0.3,
) -> Outcome:
    """Weighted mean of how well boxes lie and how complete they are (VLM-R1's weighted_sum).

    Pairs are matched best IoU first while IoU >= threshold. lie = sum(IoU) / T; completeness = 1 - (missed
    / T + false alarms / P) / 2; the value is their mean with the weights ``position`` and ``completeness``.
    Source: VLM-R1 (arXiv 2504.07615; github.com/om-ai-lab/VLM-R1, detection score with alpha 0.7, gamma
    0.3, and beta 0 for labels, which a one-category question does not have).
    """
    case = read_case(reply, columns)
    if isinstance(case, Outcome):
        return case
    pairs = [
        (boxes.iou(detection.box, truth), p, t)
        for p, detection in enumerate(case.predictions)
        for t, truth in enumerate(case.truths)
    ]
    pairs = sorted(
        (pair for pair in pairs if pair[0] >= threshold and pair[0] > 0), key=lambda pair: -pair[0]
    )
    taken_p: set[int] = set()
    taken_t: set[int] = set()
    total = 0.0
    for overlap, p, t in pairs:
        if p not in taken_p and t not in taken_t:
            taken_p.add(p)
            taken_t.add(t)
            total += overlap
    matched, predicted, true = len(taken_t), len(case.predictions), len(case.truths)
    lie = total / true
    complete = 1.0 - ((true - matched) / true + (predicted - matched) / predicted) / 2
    value = (position * lie + completeness * complete) / (position + completeness)
    return bounded(value, case.reason if matched else "no_match")


def _best_assignment(case: Case, gain: Callable[[Box, Box], float]) -> list[float]:
    """Gains of the one-to-one pairs of predictions and truths whose sum is the largest (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    matrix: Sequence[list[float]] = [[gain(d.box, truth) for truth in case.truths] for d in case.predictions]
    rows, cols = linear_sum_assignment(matrix, maximize=True)
    return [matrix[row][col] for row, col in zip(rows.tolist(), cols.tolist(), strict=True)]


def hungarian_iou(reply: str, columns: Mapping[str, Any], *, threshold: float = 0.5) -> Outcome:
    """Share of boxes whose best one-to-one partner overlaps enough: number of IoU > threshold / max(P, T).

    Partners are those of the assignment with the largest sum of IoU. Source: VisionReasoner (arXiv
    2505.12081, multi-object matching, box IoU reward: 1 / max(N, K) for each IoU above 0.5).
    """
    case = read_case(reply, columns)
    if isinstance(case, Outcome):
        return case
    hits = sum(overlap > threshold for overlap in _best_assignment(case, boxes.iou))
    return bounded(hits / denominator_of(case, "max"), case.reason if hits else "no_match")


def hungarian_l1(reply: str, columns: Mapping[str, Any], *, distance: float = 10.0) -> Outcome:
    """Share of boxes whose best one-to-one partner is near: number of L1 < distance / max(P, T).

    L1 is the mean absolute difference of the four coordinates, in units of the row's space; partners are
    those of the assignment with the smallest sum of it. Source: VisionReasoner (arXiv 2505.12081,
    multi-object matching, box L1 reward: 1 / max(N, K) for each below 10 pixels).
    """
    case = read_case(reply, columns)
    if isinstance(case, Outcome):
        return case
    nearness = _best_assignment(case, lambda a, b: -sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 4)
    hits = sum(-value < distance for value in nearness)
    return bounded(hits / denominator_of(case, "max"), case.reason if hits else "no_match")


def giou(reply: str, columns: Mapping[str, Any]) -> Outcome:
    """Sum of (GIoU + 1) / 2 over the best one-to-one pairs / max(P, T).

    Not flat where boxes do not overlap: it grows as they come nearer. An inverted box earns 0.
    Source: generalised IoU (arXiv 1902.09630); the assignment is the one of DETR (arXiv 2005.12872).
    """
    case = read_case(reply, columns)
    if isinstance(case, Outcome):
        return case
    gains = _best_assignment(case, _half_giou)
    total = sum(gains)
    return bounded(total / denominator_of(case, "max"), case.reason if total else "no_match")


def _half_giou(predicted: Box, true: Box) -> float:
    if predicted.x1 > predicted.x2 or predicted.y1 > predicted.y2:
        return 0.0
    return (boxes.giou(predicted, true) + 1.0) / 2.0
