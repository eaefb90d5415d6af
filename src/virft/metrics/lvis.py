"""LVIS numbers: federated AP by frequency of the categories (https://www.lvisdataset.org/challenge), boxes.

LVIS differs from COCO in four ways: a box of a category that an image neither holds nor is known to lack is
left out; an unmatched box of a category that is not exhaustively annotated on the image is left out; an image
keeps its 300 most confident boxes over all categories; and AP is reported for rare, common and frequent
categories.

Both scorers that exist, lvis 0.5.3 and faster-coco-eval 1.8.0, agree to 2e-16 on the shared cases. This
module uses faster-coco-eval: it is the scorer of our COCO numbers already, is maintained, has wheels and a
C++ core. The lvis package is not maintained any more: it uses ``np.float``, which numpy 1.24 took away, and
so would have to be patched from outside; it raises on an empty result list and takes unknown ids in silence.
What faster-coco-eval lacks is added here alone: the limit of 300 boxes per image, and scoring in blocks of
categories. It lays out every (image, category) pair of a call at about 1 KiB each, which is over 20 GiB for
the 24 million of the validation set; in blocks it stays near half a GiB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from virft.errors import UserError
from virft.metrics.detection import Results, Truth, id_text

if TYPE_CHECKING:
    import numpy as np

MAX_BOXES = 300
"""How many boxes an image keeps, over all categories."""
PAIRS_PER_BLOCK = 500_000
"""(image, category) pairs that are laid out at a time."""
AREAS = {"": 0, "s": 1, "m": 2, "l": 3}
"""Suffix of a number -> place in the scorer's area ranges: all, < 32^2, < 96^2, above, in pixels."""
FREQUENCIES = ("r", "c", "f")
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
"""What an image of LVIS says of the categories that it is known to lack, or not wholly annotated with."""
LVIS_NUMBERS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("AR@300", "ARs@300", "ARm@300", "ARl@300"),
)
"""The thirteen numbers of LVIS in their usual order; -1 where no truth defines one."""


def average_precision(
    results: Results, truth: Truth, pairs_per_block: int = PAIRS_PER_BLOCK
) -> dict[str, Any]:
    """LVIS's numbers, and AP, AP50 and AR@300 per category over the area range "all".

    The Visual-RFT reference averages a category over the four area ranges; that is not LVIS AP.

    Args:
        results: boxes in pixels.
        truth: LVIS annotations; their images hold the lists of :data:`FEDERATED`.
        pairs_per_block: bounds memory; changes no number.

    Returns:
        :data:`LVIS_NUMBERS` -> value in [0, 1] or -1, and ``per_category`` name -> {"AP", "AP50", "AR@300",
        "frequency", "objects" (annotated), "boxes" (predicted, after the limit)}.

    Raises:
        UserError: the annotations are not LVIS's.
    """
    for category in truth.categories:
        if category.get("frequency") not in FREQUENCIES:
            raise UserError(
                f"category {category['name']!r} has no frequency r, c or f: these are no LVIS annotations"
            )
    boxes = limit_boxes(results.boxes)
    categories = sorted(truth.categories, key=lambda c: c["id"])
    precision, recall = _accumulated(boxes, truth, [c["id"] for c in categories], pairs_per_block)
    frequency = [c["frequency"] for c in categories]
    numbers = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
    }
    numbers |= {f"AP{suffix}": _mean(precision[..., area]) for suffix, area in AREAS.items() if suffix}
    for letter in FREQUENCIES:
        members = [k for k, f in enumerate(frequency) if f == letter]
        numbers[f"AP{letter}"] = _mean(precision[:, :, members, 0])
    numbers |= {f"AR{suffix}@{MAX_BOXES}": _mean(recall[..., area]) for suffix, area in AREAS.items()}
    objects = Counter(a["category_id"] for a in truth.annotations)
    found = Counter(b["category_id"] for b in boxes)
    per_category = {
        c["name"]: {
            "AP": _mean(precision[:, :, k, 0]),
            "AP50": _mean(precision[0, :, k, 0]),
            f"AR@{MAX_BOXES}": _mean(recall[:, k, 0]),
            "frequency": c["frequency"],
            "objects": objects[c["id"]],
            "boxes": found[c["id"]],
        }
        for k, c in enumerate(categories)
    }
    return {**{name: numbers[name] for name in LVIS_NUMBERS}, "per_category": per_category}


def limit_boxes(boxes: Sequence[dict[str, Any]], limit: int = MAX_BOXES) -> list[dict[str, Any]]:
    """The ``limit`` most confident boxes of each image; of equal scores the earlier ones."""
    per_image: dict[Any, list[dict[str, Any]]] = {}
    for box in boxes:
        per_image.setdefault(box["image_id"], []).append(box)
    return [
        box
        for group in per_image.values()
        for box in (group if len(group) <= limit else sorted(group, key=lambda b: -b["score"])[:limit])
    ]


def _accumulated(
    boxes: Sequence[dict[str, Any]], truth: Truth, category_ids: Sequence[Any], pairs_per_block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (IoU, recall, category, area) and recall (IoU, category, area), -1 where undefined."""
    import numpy as np
    from faster_coco_eval import COCO, COCOeval_faster

    annotated = COCO({**truth.coco(), "images": _federated(truth)})
    found = annotated.loadRes([dict(box) for box in boxes])
    width = max(1, pairs_per_block // max(1, len(truth.images)))
    precisions, recalls = [], []
    for start in range(0, len(category_ids), width):
        evaluation = COCOeval_faster(annotated, found, "bbox", print_function=_silent, lvis_style=True)
        evaluation.params.maxDets = [MAX_BOXES]
        evaluation.params.catIds = list(category_ids[start : start + width])
        evaluation.evaluate()
        evaluation.accumulate()
        precisions.append(evaluation.eval["precision"][..., 0])
        recalls.append(evaluation.eval["recall"][..., 0])
    return np.concatenate(precisions, axis=2), np.concatenate(recalls, axis=1)


def check_lists(images: Iterable[Mapping[str, Any]]) -> None:
    """Refuse images that do not say what they lack: every false box on them would be left out.

    Raises:
        UserError: naming the image and the list of :data:`FEDERATED`.
    """
    for image in images:
        for name in FEDERATED:
            if not isinstance(image.get(name), list):
                raise UserError(f"image {image['id']!r} has no list {name!r}: these are no LVIS annotations")


def _federated(truth: Truth) -> list[dict[str, Any]]:
    """The images with their lists of categories under the ids of the truth."""
    images = []
    for image, original in zip(truth.images, truth.original_ids, strict=True):
        check_lists([{**image, "id": original}])
        known = {name: [truth.category_ids.get(id_text(c)) for c in image[name]] for name in FEDERATED}
        images.append({**image, **{k: [c for c in ids if c is not None] for k, ids in known.items()}})
    return images


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _silent(*_: object) -> None:
    """faster-coco-eval's own progress lines are not for a user."""
