"""Detection numbers from replies or from COCO results: AP by COCO's rules, and mean IoU per question.

Two steps that COCO and LVIS share come first: a reply, or an entry of a results file, becomes a *result*
(image_id, category_id, bbox as x, y, width, height in pixels, score); what cannot is dropped and counted:

==================  ==========================================================================================
unreadable reply    no boxes; counted under the reader's reason code (:data:`virft.parsing.REASONS`)
score missing       ``missing_score`` (1.0: a box without a confidence is asserted), counted
score as text       read when it is a number ("0.9"); anything else, true, NaN or infinite: the box is dropped
bbox                dropped unless it is four finite numbers with width and height not negative
unknown image or    dropped; when nothing is left the file belongs to other annotations and is refused
category id
not scored          dropped: of a category or image of the annotations that is not among the chosen ones
==================  ==========================================================================================

Ids may be numbers in one file and text in the other. Boxes are not clipped to the image and duplicates stay:
COCO's rules count them as false positives. Annotation ids are given anew, since an annotation with id 0 would
never be matched; a missing ``area`` is the box's, a missing ``iscrowd`` 0.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from virft.boxes import convert, greedy_match, same_shape
from virft.errors import UserError
from virft.parsing import parse_detections
from virft.types import Box, Detection, Prediction

if TYPE_CHECKING:
    import numpy as np

MISSING_SCORE = 1.0
COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The twelve numbers of COCO in their usual order; -1, as pycocotools gives, where no truth defines one."""

Pair = tuple[int, int]
"""(number of an image in :attr:`Truth.images`, category id)."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Annotations made fit for scoring.

    Attributes:
        images: the images in the order of their ids, with ids 1, 2, 3 ...
        categories: the chosen ones by id.
        annotations: theirs on these images, with ids 1, 2, 3 ..., new image ids, ``area``, ``iscrowd``.
        image_ids: text of an image's id in the file -> its new id.
        original_ids: the id in the file of each of ``images``.
        category_ids: text of a category's id -> the id as a whole number.
        others: text of the ids of ("image" or "category") in the file that are not scored.
    """

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    image_ids: dict[str, int]
    original_ids: list[Any]
    category_ids: dict[str, int]
    others: dict[str, set[str]]

    def coco(self) -> dict[str, Any]:
        """The three lists under COCO's names."""
        return {"images": self.images, "categories": self.categories, "annotations": self.annotations}

    def boxes(self) -> dict[Pair, list[Box]]:
        """Corners of the annotated objects in pixels for each pair that has some, crowds left out."""
        found: dict[Pair, list[Box]] = {}
        for a in self.annotations:
            if not a["iscrowd"]:
                box = convert(a["bbox"], "xywh", "pixels")
                found.setdefault((a["image_id"], a["category_id"]), []).append(box)
        return found


@dataclass(slots=True)
class Results:
    """Boxes ready for scoring, and what became of the rest.

    Attributes:
        boxes: dictionaries image_id (:class:`Truth`'s), category_id, bbox (x, y, w, h in pixels), score.
        asked: the pairs that were asked; None for a results file, which does not say.
        unreadable: the pairs whose reply could not be read.
        replies: how many replies were read; 0 for a results file.
        reasons: reason code -> number of unreadable replies.
        dropped: what happened to a box -> how often (see the module).
        likelihoods: for each of ``boxes`` the log-probability of its coordinates; None where not every reply
            holds its tokens' log-probabilities, as in a results file.
    """

    boxes: list[dict[str, Any]] = field(default_factory=list)
    asked: list[Pair] | None = None
    unreadable: set[Pair] = field(default_factory=set)
    replies: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    likelihoods: list[float] | None = None


def make_truth(
    annotations: Mapping[str, Any],
    categories: Sequence[Mapping[str, Any]] | None = None,
    max_images: int | None = None,
) -> Truth:
    """Annotations of the chosen categories on the first ``max_images`` images, fit for scoring.

    Raises:
        UserError: an image or category id that occurs twice, a category id that is no whole number, or an
            annotation whose bbox is not four numbers, whose area is none or whose iscrowd is neither 0 nor 1.
    """
    chosen = [
        {**c, "id": _whole(c["id"], c["name"])}
        for c in (annotations["categories"] if categories is None else categories)
    ]
    chosen.sort(key=lambda c: c["id"])
    images = list(annotations["images"][:max_images])
    # pycocotools goes through images by id, which decides the order of equal scores.
    images.sort(key=lambda i: (isinstance(i["id"], str), i["id"]))
    image_ids = {id_text(image["id"]): number for number, image in enumerate(images, 1)}
    if len(image_ids) < len(images):
        raise UserError("the annotations hold two images with the same id")
    category_ids = {id_text(c["id"]): c["id"] for c in chosen}
    if len(category_ids) < len(chosen):
        raise UserError("the annotations hold two categories with the same id")
    kept = []
    for a in annotations["annotations"]:
        image_id = image_ids.get(id_text(a["image_id"]))
        category_id = category_ids.get(id_text(a["category_id"]))
        if image_id is None or category_id is None:
            continue
        kept.append(
            {
                **{k: v for k, v in a.items() if k != "segmentation"},
                "id": len(kept) + 1,
                "image_id": image_id,
                "category_id": category_id,
                **_measures(a),
            }
        )
    numbered = [{**image, "id": number} for number, image in enumerate(images, 1)]
    others = {
        "image": {id_text(i["id"]) for i in annotations["images"]} - set(image_ids),
        "category": {id_text(c["id"]) for c in annotations["categories"]} - set(category_ids),
    }
    return Truth(numbered, chosen, kept, image_ids, [i["id"] for i in images], category_ids, others)


def _measures(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Box, area and iscrowd of an annotation, as numbers. Raises UserError naming it."""
    where = f"annotation {annotation.get('id', '')!r} of image {annotation['image_id']!r}"
    given = annotation["bbox"]
    box = [_number(v) for v in given] if isinstance(given, list | tuple) else []
    if len(box) != 4 or None in box or box[2] < 0 or box[3] < 0:
        raise UserError(
            f"{where}: bbox {given!r} is not four numbers x, y, width, height, the sides not negative"
        )
    area, crowd = annotation.get("area"), annotation.get("iscrowd")
    measured = box[2] * box[3] if area is None else _number(area)
    if measured is None:
        raise UserError(f"{where}: area {area!r} is no number of square pixels")
    is_crowd = crowd if isinstance(crowd, bool) else 0.0 if crowd is None else _number(crowd)
    if is_crowd not in (0, 1):
        raise UserError(f"{where}: iscrowd {crowd!r} is neither 0 nor 1")
    return {"bbox": box, "area": measured, "iscrowd": int(is_crowd)}


def from_replies(
    predictions: Iterable[Prediction], truth: Truth, missing_score: float = MISSING_SCORE
) -> Results:
    """Read replies into results.

    Args:
        predictions: their meta holds image_id and category_id.
        truth: of the same data set; questions about other categories or images are left out and counted.
        missing_score: score of a box without confidence.

    Raises:
        UserError: meta without ids, no size where a conversion needs it, log-probabilities that do not cover
            their reply, or no question belongs to truth.
    """
    results = Results(asked=[], likelihoods=[])
    for p in predictions:
        pair = _pair(p.meta, truth, results, f"prediction {p.id!r}: its meta")
        if pair is None:
            continue
        results.asked.append(pair)
        results.replies += 1
        if p.logprobs is None:
            results.likelihoods = None
        parsed = parse_detections(p.reply)
        if not parsed.ok:
            results.reasons[parsed.reason] += 1
            results.unreadable.add(pair)
            continue
        for note in parsed.notes:
            results.dropped[note] += 1
        for detection in parsed.value:
            try:
                x, y, right, bottom = convert(
                    detection.box, p.space, "xywh", _size(p, pair, truth), p.model_size
                )
            except ValueError as error:
                raise UserError(f"prediction {p.id!r}: {error}") from error
            kept = _keep(results, pair, (x, y, right, bottom), detection.score, missing_score)
            if kept and results.likelihoods is not None:
                results.likelihoods.append(likelihood(p, detection))
    _some_known(results, results.replies)
    if not results.replies:
        results.likelihoods = None
    return results


def likelihood(prediction: Prediction, detection: Detection) -> float:
    """Logarithm of the probability that the model gave a box's coordinates after all that it wrote before.

    The sum over the tokens that wrote the characters of ``detection.span``, that is the four numbers and what
    stands between them; the confidence and all that follows is left out. A sum because that is the chain
    rule: it does not depend on how a tokenizer cuts numbers, and what stands between them, being certain,
    costs nothing, where a mean would be diluted by it. (Over nine models of the quick start AP by the sum
    and by the mean differ by 0.004 at most.)

    Raises:
        UserError: the prediction's tokens do not reach as far as the box.
    """
    begin, end = detection.span
    ends = prediction.token_ends
    # The first token that ends after the beginning, to the first that reaches the end.
    first, last = bisect_right(ends, begin), bisect_left(ends, end)
    if last >= len(ends):
        raise UserError(f"prediction {prediction.id!r}: its token_ends do not cover its reply")
    return math.fsum(prediction.logprobs[first : last + 1])


def from_coco_results(
    entries: Sequence[Mapping[str, Any]], truth: Truth, missing_score: float = MISSING_SCORE
) -> Results:
    """Read the entries of a COCO results file (image_id, category_id, bbox, score); none is changed.

    Raises:
        UserError: an entry without ids or bbox, or none that belongs to truth.
    """
    results = Results()
    known = 0
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or "bbox" not in entry:
            raise UserError(f"results: entry {number} has no 'bbox'")
        pair = _pair(entry, truth, results, f"results: entry {number}")
        if pair is not None:
            known += 1
            _keep(results, pair, entry["bbox"], entry.get("score"), missing_score)
    _some_known(results, known)
    return results


def average_precision(results: Results, truth: Truth) -> dict[str, Any]:
    """COCO's twelve numbers and AP, AP50 and AR100 per category, by faster-coco-eval.

    Returns:
        :data:`COCO_NUMBERS` -> value in [0, 1] or -1, and ``per_category`` name -> {"AP", "AP50", "AR100",
        "objects" (annotated, crowds left out), "boxes" (predicted)}.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    annotated = COCO(truth.coco())
    found = annotated.loadRes([dict(box) for box in results.boxes])
    evaluation = COCOeval_faster(annotated, found, "bbox", print_function=_silent)
    evaluation.params.catIds = [c["id"] for c in truth.categories]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    numbers = dict(zip(COCO_NUMBERS, (float(v) for v in evaluation.stats), strict=True))
    return {**numbers, "per_category": _per_category(evaluation.eval, results, truth)}


def constant_confidence(results: Results) -> Results:
    """The same boxes with one confidence for all: what remains is what the boxes alone are worth."""
    return replace(results, boxes=[{**box, "score": 1.0} for box in results.boxes])


def likelihood_ranked(results: Results) -> Results | None:
    """The same boxes, each with :func:`likelihood` as its confidence; None where replies hold none.

    It ranks boxes by how sure the model was while it wrote them, whatever confidence it then wrote. So it
    shows what a model knows of its boxes and does not say: a training that gains by its confidences alone
    gains nothing here. Source of the idea: Pix2Seq (arXiv 2109.10852) ranks its boxes by the probability of
    the class token that it writes.
    """
    if results.likelihoods is None:
        return None
    ranked = zip(results.boxes, results.likelihoods, strict=True)
    return replace(results, boxes=[{**box, "score": value} for box, value in ranked])


def question_ious(results: Results, truth: Truth) -> dict[Pair, float]:
    """IoU of every question: greedy matches, without threshold, summed / max(predicted, annotated).

    Predictions go most confident first, each to its best free object (the accuracy_iou reward with threshold
    0). Nothing predicted where nothing is annotated gives 1, an unreadable reply always 0. A results file
    does not say what was asked: then the questions are the pairs with an object or a prediction.
    """
    annotated = truth.boxes()
    predicted: dict[Pair, list[tuple[float, Box]]] = {}
    for box in results.boxes:
        corners = convert(box["bbox"], "xywh", "pixels")
        predicted.setdefault((box["image_id"], box["category_id"]), []).append((box["score"], corners))
    asked = results.asked if results.asked is not None else [*annotated, *predicted]
    values = {}
    for pair in dict.fromkeys(asked):
        objects = annotated.get(pair, [])
        # Sorting is stable: equal scores keep the order in which the model wrote them.
        boxes = [b for _, b in sorted(predicted.get(pair, []), key=lambda scored: -scored[0])]
        if pair in results.unreadable:
            values[pair] = 0.0
        elif not objects and not boxes:
            values[pair] = 1.0
        else:
            matched = sum(overlap for _, overlap in greedy_match(boxes, objects, 0.0))
            values[pair] = matched / max(len(boxes), len(objects))
    return values


def evaluate(
    results: Results, truth: Truth, precision: Callable[[Results, Truth], dict[str, Any]] = average_precision
) -> dict[str, Any]:
    """Everything that stands in a COCO or LVIS score file.

    Args:
        results, truth: of one data set.
        precision: the rules of AP: COCO's here, or those of :mod:`virft.metrics.lvis`.

    Returns:
        The numbers of ``precision``; ``mean_iou`` over all questions, ``mean_iou_present`` over
        those with an object; ``constant_confidence`` {"AP", "AP50"}, and ``likelihood_ranked`` likewise where
        the replies hold log-probabilities; ``questions``, ``unreadable`` {reason: count}, ``dropped`` {what:
        count}, ``boxes``, ``objects``.
    """
    ious = question_ious(results, truth)
    present = truth.boxes()
    with_object = [value for pair, value in ious.items() if pair in present]
    rankings = {
        "constant_confidence": constant_confidence(results),
        "likelihood_ranked": likelihood_ranked(results),
    }
    ranked = {name: precision(other, truth) for name, other in rankings.items() if other is not None}
    return {
        **precision(results, truth),
        "mean_iou": sum(ious.values()) / len(ious) if ious else 0.0,
        "mean_iou_present": sum(with_object) / len(with_object) if with_object else 0.0,
        **{name: {ap: numbers[ap] for ap in ("AP", "AP50")} for name, numbers in ranked.items()},
        "questions": len(ious),
        "unreadable": dict(results.reasons),
        "dropped": dict(results.dropped),
        "boxes": len(results.boxes),
        "objects": sum(len(b) for b in present.values()),
    }


def to_coco_results(results: Results, truth: Truth) -> list[dict[str, Any]]:
    """The results with the image ids of the annotation file, for other tools and evaluation servers."""
    return [{**box, "image_id": truth.original_ids[box["image_id"] - 1]} for box in results.boxes]


def _pair(entry: Mapping[str, Any], truth: Truth, results: Results, where: str) -> Pair | None:
    for key in ("image_id", "category_id"):
        if key not in entry:
            raise UserError(f"{where} has no {key!r}")
    ids = []
    for what, known in (("image", truth.image_ids), ("category", truth.category_ids)):
        name = id_text(entry[f"{what}_id"])
        if name not in known:
            results.dropped["not_scored" if name in truth.others[what] else f"unknown_{what}"] += 1
            return None
        ids.append(known[name])
    return ids[0], ids[1]


def _size(prediction: Prediction, pair: Pair, truth: Truth) -> tuple[int, int] | None:
    """Size of the image that boxes are scored on: the annotations', else that of the picture as opened.

    The picture that was asked about may be a smaller or larger copy of the annotated one.

    Raises:
        UserError: it has another shape, so that it was turned or is another picture.
    """
    image = truth.images[pair[0] - 1]
    said = (image.get("width"), image.get("height"))
    if not all(isinstance(side, int | float) and side > 0 for side in said):
        return prediction.image_size
    if prediction.image_size and not same_shape(prediction.image_size, said):
        raise UserError(
            f"prediction {prediction.id!r}: its picture had {prediction.image_size[0]} x "
            f"{prediction.image_size[1]} pixels, its annotations are for {said[0]} x {said[1]}: are these "
            "the annotations of these images, or was the image turned after it was annotated?"
        )
    return said


def _keep(results: Results, pair: Pair, bbox: Any, score: Any, missing_score: float) -> bool:
    """Add a box that can be scored and count one that cannot; whether it was added."""
    numbers = [_number(v) for v in bbox] if isinstance(bbox, list | tuple) else []
    if len(numbers) != 4 or None in numbers or numbers[2] < 0 or numbers[3] < 0:
        results.dropped["bad_bbox"] += 1
        return False
    if score is None:
        results.dropped["missing_score"] += 1
        score = missing_score
    value = _number(score)
    if value is None:
        results.dropped["bad_score"] += 1
        return False
    results.boxes.append({"image_id": pair[0], "category_id": pair[1], "bbox": numbers, "score": value})
    return True


def id_text(identity: Any) -> str:
    """What ids are compared by: 7, 7.0 and "7" are one."""
    whole = isinstance(identity, float) and identity.is_integer()
    return str(int(identity) if whole else identity)


def _whole(category_id: Any, name: str) -> int:
    number = _number(category_id)
    if number is None or number != int(number):
        raise UserError(f"category {name!r}: its id {category_id!r} is no whole number")
    return int(number)


def _number(value: Any) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _some_known(results: Results, known: int) -> None:
    lost = sum(results.dropped[k] for k in ("unknown_image", "unknown_category", "not_scored"))
    if lost and not known:
        raise UserError(
            f"none of the {lost} predictions belongs to the annotations' scored images and categories "
            f"({results.dropped['unknown_image']} have an unknown image id); "
            "check --annotations and --categories"
        )


def _per_category(accumulated: Mapping[str, Any], results: Results, truth: Truth) -> dict[str, Any]:
    """From the accumulated arrays: precision (IoU, recall, category, area, limit), recall without recalls.

    Area 0 is "all", the last limit 100 detections.
    """
    precision, recall = accumulated["precision"], accumulated["recall"]
    objects = Counter(a["category_id"] for a in truth.annotations if not a["iscrowd"])
    boxes = Counter(b["category_id"] for b in results.boxes)
    return {
        c["name"]: {
            "AP": _defined_mean(precision[:, :, k, 0, -1]),
            "AP50": _defined_mean(precision[0, :, k, 0, -1]),
            "AR100": _defined_mean(recall[:, k, 0, -1]),
            "objects": objects[c["id"]],
            "boxes": boxes[c["id"]],
        }
        for k, c in enumerate(truth.categories)
    }


def _defined_mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _silent(*_: object) -> None:
    """faster-coco-eval's own progress lines are not for a user."""
