"""Grounding numbers: mean box IoU of replies, gIoU and cIoU of masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from virft import boxes, parsing
from virft.errors import UserError
from virft.types import Box, Prediction, Sample

if TYPE_CHECKING:
    import numpy as np

RIGHT_IOU = 0.5
"""The box IoU from which :attr:`BoxScore.accuracy` counts an answer as right."""


MISSING, INVERTED, OUTSIDE = "missing", "inverted_box", "outside_image"
"""Reasons beside the reader's: no reply at all, corners that enclose nothing, a box beside the image."""


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
        miou: mean IoU; a missing or unreadable reply counts 0.
        miou_readable: mean IoU of the readable replies alone, the reference's way; None where there is none.
        accuracy: share of questions with IoU >= :data:`RIGHT_IOU`.
        questions: how many questions have a true box.
        without_truth: how many have none and are left out.
        reasons: reason code -> count over the questions; "ok" counts the readable ones.
        rows: one per question, in the order given.
    """

    miou: float
    miou_readable: float | None
    accuracy: float
    questions: int
    without_truth: int
    reasons: dict[str, int]
    rows: tuple[BoxRow, ...] = field(repr=False)


def predicted_box(prediction: Prediction | None) -> tuple[Box | None, str]:
    """The box of a grounding reply in pixels, clipped to the image, and "ok" or why there is none.

    Raises:
        UserError: the prediction lacks a size that its coordinate space needs.
    """
    if prediction is None:
        return None, MISSING
    parsed = parsing.parse_grounding(prediction.reply)
    if not parsed.ok:
        return None, parsed.reason
    if prediction.image_size is None:
        raise UserError(f"prediction {prediction.id!r} lacks the size of its image")
    size = prediction.image_size
    try:
        box = boxes.convert(parsed.value, prediction.space, "pixels", size, prediction.model_size)
    except ValueError as error:
        raise UserError(f"prediction {prediction.id!r}: {error}") from error
    if boxes.area(box) <= 0:
        return None, INVERTED
    inside = _clipped(box, size)
    return (inside, "ok") if boxes.area(inside) > 0 else (None, OUTSIDE)


def _clipped(box: Box, size: tuple[int, int]) -> Box:
    """The part of a box in pixels that lies in an image of ``size``."""
    return Box(*(min(max(v, 0.0), float(limit)) for v, limit in zip(box, size * 2, strict=True)))


def by_id(samples: Sequence[Sample], predictions: Iterable[Prediction]) -> dict[str, Prediction]:
    """Predictions by the id of their sample.

    Raises:
        UserError: a prediction that belongs to no sample, so that the file belongs to another data set.
    """
    known = {sample.id for sample in samples}
    found = {prediction.id: prediction for prediction in predictions}
    unknown = [identity for identity in found if identity not in known]
    if unknown:
        raise UserError(
            f"{len(unknown)} predictions belong to none of the {len(known)} questions of these annotations, "
            f"the first is {unknown[0]!r}; check --annotations"
        )
    return found


def score_boxes(samples: Sequence[Sample], predictions: Iterable[Prediction], rule: str = "all") -> BoxScore:
    """Mean box IoU (LISA mIoU of the paper), in pixels; answer and truth are clipped to the image.

    Args:
        samples: the questions; ``meta["boxes"][rule]`` is the true box in pixels, or None.
        predictions: their replies, in any order; missing ones count 0.
        rule: which truth.

    Raises:
        UserError: no question with a true box, or see :func:`by_id` and :func:`predicted_box`.
    """
    replies = by_id(samples, predictions)
    rows = []
    for sample in samples:
        if sample.meta["boxes"][rule] is None:
            continue
        truth = Box(*sample.meta["boxes"][rule])
        reply = replies.get(sample.id)
        predicted, reason = predicted_box(reply)
        if predicted is not None:
            # As the answer is: what a polygon says of the world beside the image cannot be answered.
            truth = _clipped(truth, reply.image_size)
        overlap = boxes.iou(predicted, truth) if predicted is not None else 0.0
        rows.append(BoxRow(sample.id, predicted, truth, overlap, reason))
    if not rows:
        raise UserError("no question has a true box to score against")
    readable = [row.iou for row in rows if row.predicted is not None]
    return BoxScore(
        miou=sum(row.iou for row in rows) / len(rows),
        miou_readable=sum(readable) / len(readable) if readable else None,
        accuracy=sum(row.iou >= RIGHT_IOU for row in rows) / len(rows),
        questions=len(rows),
        without_truth=len(samples) - len(rows),
        reasons=dict(Counter(row.reason for row in rows).most_common()),
        rows=tuple(rows),
    )


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A bool array (height, width) as COCO's compressed RLE: {"size": [height, width], "counts": text}."""
    import numpy as np
    from faster_coco_eval.core import mask as rle

    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = encoded["counts"]
    return {
        "size": [int(v) for v in encoded["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def decode_mask(encoded: Mapping[str, Any]) -> np.ndarray:
    """The inverse of :func:`encode_mask`."""
    from faster_coco_eval.core import mask as rle

    return rle.decode(dict(encoded)).astype(bool)


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
