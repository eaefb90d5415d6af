"""Average precision of one reply: the evaluation's own number as a reward."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from virft import boxes
from virft.rewards.detection import Case, bounded, read_case
from virft.rewards.outcome import Outcome

# The very floating-point numbers of COCO's grids: boxes may lie exactly on a threshold.
COCO_THRESHOLDS = tuple(0.5 + (0.95 - 0.5) / 9 * step for step in range(10))
RECALLS = tuple(0.01 * step for step in range(101))
MOST_DETECTIONS = 100
"""COCO looks at no more than the 100 most confident boxes of an image."""


def sample_map(reply: str, columns: Mapping[str, Any], *, iou: str | float = "coco") -> Outcome:
    """COCO's average precision of the one image and category that the row asks for.

    AP with 101 recall points, area "all" and at most 100 boxes, averaged over IoU 0.50, 0.55 ... 0.95
    (``coco``) or at one IoU. Boxes rank by confidence, those without one last. Source: the COCO detection
    evaluation (cocodataset.org/#detection-eval); as a reward in VLM-R1 (arXiv 2504.07615).
    """
    case = read_case(reply, columns)
    if isinstance(case, Outcome):
        return case
    value = mean_average_precision(case, iou)
    return bounded(value, case.reason if value else "no_match")


def od_length(reply: str, columns: Mapping[str, Any], *, iou: str | float = "coco") -> Outcome:
    """``sample_map`` x min(1, T / P), T true and P predicted boxes (VLM-R1's odLength).

    AP hardly minds boxes that rank below the last right one, so a model learns to list many; the factor
    makes each surplus box cost. Source: VLM-R1 (arXiv 2504.07615, reward for open-vocabulary detection).
    """
    case = read_case(reply, columns)
    if isinstance(case, Outcome):
        return case
    value = mean_average_precision(case, iou) * min(1.0, len(case.truths) / len(case.predictions))
    return bounded(value, case.reason if value else "no_match")


def mean_average_precision(case: Case, iou: str | float = "coco") -> float:
    """AP of one image, averaged over the IoU thresholds; the case has at least one box on either side."""
    overlaps = [
        [boxes.iou(detection.box, truth) for truth in case.truths]
        for detection in case.predictions[:MOST_DETECTIONS]
    ]
    thresholds = COCO_THRESHOLDS if iou == "coco" else (float(iou),)
    values = []
    for threshold in thresholds:
        hits = [truth is not None for truth in boxes.coco_match(overlaps, threshold)]
        values.append(_average_precision(hits, len(case.truths)))
    return sum(values) / len(values)


def _average_precision(hits: Sequence[bool], truths: int) -> float:
    """Mean over 101 recalls of the highest precision at that recall or beyond."""
    recalls, precisions, right = [], [], 0
    for rank, hit in enumerate(hits, start=1):
        right += hit
        recalls.append(right / truths)
        precisions.append(right / rank)
    for rank in range(len(precisions) - 2, -1, -1):
        precisions[rank] = max(precisions[rank], precisions[rank + 1])
    places = [bisect_left(recalls, recall) for recall in RECALLS]
    return sum(precisions[place] for place in places if place < len(precisions)) / len(RECALLS)
