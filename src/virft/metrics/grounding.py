"""Grounding numbers: mean box IoU of replies, gIoU and cIoU of masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from virft import boxes, parsing
from virft.errors import UserError
from virft.types import Box, Prediction

if TYPE_CHECKING:
    import numpy as np

RIGHT_IOU = 0.5
"""The box IoU from which :attr:`BoxScore.accuracy` counts an answer as right."""


@dataclass(frozen=True, slots=True)
class BoxRow:
    """One question: its id, the predicted and the true box in pixels (None where absent), IoU, reason."""

    id: str
    predicted: Box | None
    truth: Box
    iou: float
    reason: str


@dataclass(frozen=True, slots=True)
class BoxScore:
    """Numbers in [0, 1] over the questions that have a true box.

    Attributes:
        miou: mean IoU; a reply without a readable box counts 0.
        miou_readable: mean IoU of the readable replies alone, the reference's way; None where there is none.
        accuracy: share of questions with IoU >= :data:`RIGHT_IOU`.
        questions: how many questions had a true box.
        without_truth: how many had none and are left out.
        reasons: reason code -> count over the questions.
        rows: one per question, in the order given.
    """

    miou: float
    miou_readable: float | None
    accuracy: float
    questions: int
    without_truth: int
    reasons: dict[str, int]
    rows: tuple[BoxRow, ...] = field(repr=False)


def predicted_box(prediction: Prediction) -> tuple[Box | None, str]:
    """The box of a grounding reply in pixels of the image, clipped to it, and the reader's reason code.

    Raises:
        ValueError: the prediction lacks the image's size.
    """
    parsed = parsing.parse_grounding(prediction.reply)
    if not parsed.ok:
        return None, parsed.reason
    box = boxes.convert(
        parsed.value, prediction.space, "pixels", prediction.image_size, prediction.model_size
    )
    width, height = prediction.image_size
    x1, x2 = (min(max(x, 0.0), float(width)) for x in (box.x1, box.x2))
    y1, y2 = (min(max(y, 0.0), float(height)) for y in (box.y1, box.y2))
    return Box(x1, y1, x2, y2), parsed.reason


def score_boxes(predictions: Iterable[Prediction], rule: str = "all") -> BoxScore:
    """Mean box IoU (paper sec. 4: LISA mIoU) of replies against ``meta["boxes"][rule]``, in pixels.

    Raises:
        UserError: a prediction whose meta holds no truth, or no prediction at all.
    """
    rows: list[BoxRow] = []
    without_truth = 0
    for prediction in predictions:
        truths = prediction.meta.get("boxes")
        if not isinstance(truths, dict) or rule not in truths:
            raise UserError(f"prediction {prediction.id!r} holds no true box for rule {rule!r} in its meta")
        if truths[rule] is None:
            without_truth += 1
            continue
        truth = Box(*truths[rule])
        predicted, reason = predicted_box(prediction)
        overlap = boxes.iou(predicted, truth) if predicted is not None else 0.0
        rows.append(BoxRow(prediction.id, predicted, truth, overlap, reason))
    if not rows:
        raise UserError("no prediction with a true box to score")
    readable = [row.iou for row in rows if row.predicted is not None]
    return BoxScore(
        miou=sum(row.iou for row in rows) / len(rows),
        miou_readable=sum(readable) / len(readable) if readable else None,
        accuracy=sum(row.iou >= RIGHT_IOU for row in rows) / len(rows),
        questions=len(rows),
        without_truth=without_truth,
        reasons=dict(Counter(row.reason for row in rows)),
        rows=tuple(rows),
    )


@dataclass(frozen=True, slots=True)
class MaskScore:
    """gIoU and cIoU in [0, 1], and one IoU per question in the order given."""

    giou: float
    ciou: float
    ious: tuple[float, ...] = field(repr=False)


def mask_areas(
    predicted: np.ndarray | None, target: np.ndarray, counted: np.ndarray | None = None
) -> tuple[int, int]:
    """Pixels in the intersection and in the union of two masks.

    Args:
        predicted: bool array (height, width); None for a missing prediction, which is an empty mask.
        target: bool array (height, width), the truth.
        counted: bool array (height, width), False where a pixel is left out; None counts all.

    Raises:
        ValueError: two shapes.
    """
    target = target if counted is None else target & counted
    if predicted is None:
        return 0, int(target.sum())
    if predicted.shape != target.shape:
        raise ValueError(f"a mask of shape {predicted.shape} against a truth of shape {target.shape}")
    inside = predicted.astype(bool) if counted is None else predicted.astype(bool) & counted
    return int((inside & target).sum()), int((inside | target).sum())


def score_masks(areas: Iterable[tuple[int, int]]) -> MaskScore:
    """gIoU (mean of IoUs) and cIoU (sum of intersections / sum of unions), LISA's definition.

    arXiv 2308.00692, sec. 4.1; utils/utils.py of LISA: where the union is empty - no target, nothing
    predicted - the IoU is 1. LISA adds 1e-5 and 1e-10 to the denominators; that is left out here.

    Args:
        areas: (intersection, union) in pixels of every question, as :func:`mask_areas` gives them.

    Raises:
        UserError: nothing to score.
    """
    areas = list(areas)
    if not areas:
        raise UserError("no mask to score")
    ious = tuple(common / union if union else 1.0 for common, union in areas)
    total = sum(union for _, union in areas)
    return MaskScore(
        giou=sum(ious) / len(ious),
        ciou=sum(common for common, _ in areas) / total if total else 1.0,
        ious=ious,
    )
