"""How sure a number is: intervals by the paired bootstrap, and COCO's mAP of a resample in little time.

A *unit* is what is drawn: an image or a question. A *statistic* takes the weights of a resample (how often
each unit was drawn, whole numbers of shape (units,)) and gives its number; with all weights 1 it is the plain
number. Two contestants that answered the same questions are judged on the same resamples: what is hard about
a draw is hard for both, so that the interval is of their difference alone.

    before = bootstrap.average_precision(results_of_sft, truth)
    after = bootstrap.average_precision(results_of_rft, truth)
    bootstrap.paired(before, after, count=len(truth.images), resamples=1000)

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from virft.boxes import coco_match
from virft.metrics.detection import Results, Truth

if TYPE_CHECKING:
    import numpy as np

    Statistic = Callable[[np.ndarray], float]

RESAMPLES = 5000
LEVEL = 0.95
"""Share of the resamples that lies within the interval."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and the 95 % percentile interval of its resamples.

    Attributes:
        change: after - before on the units themselves; of a single statistic its value.
        low, high: ends of the interval.
    """

    change: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return self.low > 0 or self.high < 0


def paired(
    before: Statistic, after: Statistic, count: int, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The gain of ``after`` over ``before``, both evaluated on the same resamples.

    Args:
        before, after: statistics of the same units in the same order.
        count: how many units there are.
        resamples, seed: how many draws, and of which random sequence.

    Raises:
        ValueError: no unit or no resample, or statistics of another number of units.
    """
    changes = resampled(after, count, resamples, seed) - resampled(before, count, resamples, seed)
    whole = _ones(count)
    return interval(after(whole) - before(whole), changes)


def single(statistic: Statistic, count: int, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The value of one statistic and its interval; arguments and errors as in :func:`paired`."""
    values = resampled(statistic, count, resamples, seed)
    return interval(statistic(_ones(count)), values)


def resampled(statistic: Statistic, count: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """The statistic on every resample, shape (resamples,); one seed draws the same for every statistic."""
    import numpy as np

    return np.array([statistic(weights) for weights in draws(count, resamples, seed)])


def draws(count: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Weights of each resample: ``count`` units drawn with replacement out of ``count``.

    Raises:
        ValueError: no unit or no resample.
    """
    import numpy as np

    if count < 1 or resamples < 1:
        raise ValueError(f"a bootstrap needs units and resamples, got {count} and {resamples}")
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, count, count), minlength=count)


def interval(value: float, values: Sequence[float] | np.ndarray) -> Interval:
    """The percentile interval of a number's resamples: what :func:`paired` ends with.

    Where many pairs are compared, resample each contestant once and give this the difference of two.

    Args:
        value: the number on the units themselves.
        values: the number on each resample.
    """
    import numpy as np

    rest = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [rest, 100 - rest])
    return Interval(value, float(low), float(high))


def mean(values: Iterable[float]) -> Statistic:
    """The statistic "mean of one value for each unit"."""
    import numpy as np

    numbers = np.asarray(list(values), dtype=float)

    def statistic(weights: np.ndarray) -> float:
        return float(weights @ numbers / weights.sum())

    return statistic


def average_precision(results: Results, truth: Truth) -> Statistic:
    """The statistic "COCO's mAP", whose units are the images of ``truth.images``, in their order.

    The number "AP" of :func:`virft.metrics.detection.average_precision` (area "all", 100 boxes an image and
    category, IoU .50:.95, 101 recalls, crowds and ignored areas as COCO has them) of a data set in which each
    image stands as often as its weight says, its copies one after the other: that decides the order of equal
    scores, which goes by images and then by the order of the boxes. -1 where no drawn image holds an object.

    Boxes are matched here, once; a resample only counts along rankings that are sorted already.

    Args:
        results: boxes in pixels.
        truth: of the same images. LVIS's federated rules are not known here.
    """
    from faster_coco_eval.core.cocoeval import Params

    grid = Params(iouType="bbox")  # the scorer's own thresholds, to the last bit
    found = _by_pair(results.boxes)
    annotated = _by_pair(truth.annotations)
    rankings = [_rank(category["id"], truth, found, annotated, grid) for category in truth.categories]

    def statistic(weights: np.ndarray) -> float:
        if weights.shape != (len(truth.images),):
            raise ValueError(f"weights of shape {weights.shape} for {len(truth.images)} images")
        values = [_average_precision(ranking, weights, grid.recThrs) for ranking in rankings]
        defined = [value for value in values if value is not None]
        return sum(defined) / len(defined) if defined else -1.0

    return statistic


def _ones(count: int) -> np.ndarray:
    import numpy as np

    return np.ones(count, dtype=int)


@dataclass(frozen=True, slots=True)
class _Ranking:
    """The boxes of a category, most confident first, and which of them are right at each IoU threshold.

    A run is a stretch of boxes of one image with one score: copies of the image repeat it as a whole.

    Attributes:
        objects: (images,), how many objects each image asks for.
        images, starts, lengths: (runs,), a run's image, its first box and its number of boxes.
        hits: (thresholds, boxes), 1 where a box finds an object.
        counted: (thresholds, boxes), 1 where a box counts, 0 where it is ignored.
    """

    objects: np.ndarray
    images: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    hits: np.ndarray
    counted: np.ndarray


def _by_pair(entries: Sequence[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    pairs: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for entry in entries:
        pairs.setdefault((entry["image_id"], entry["category_id"]), []).append(entry)
    return pairs


def _rank(category: int, truth: Truth, found: Any, annotated: Any, grid: Any) -> _Ranking:
    import numpy as np

    objects = np.zeros(len(truth.images), dtype=int)
    scores, images = [], []
    hits = [np.zeros((len(grid.iouThrs), 0), dtype=int)]
    counted = [hits[0]]
    for number, image in enumerate(truth.images):
        truths = annotated.get((image["id"], category), [])
        ignored = [bool(t["iscrowd"]) or _is_outside(t["area"], grid) for t in truths]
        objects[number] = ignored.count(False)
        # Sorting is stable: equal scores keep the order in which they were written.
        boxes = sorted(found.get((image["id"], category), []), key=lambda box: -box["score"])
        boxes = boxes[: grid.maxDets[-1]]
        if boxes:
            right, counts = _matched(boxes, truths, ignored, grid)
            scores += [box["score"] for box in boxes]
            images += [number] * len(boxes)
            hits.append(right)
            counted.append(counts)
    order = np.argsort(-np.array(scores, dtype=float), kind="stable")
    ranked, owners = np.array(scores, dtype=float)[order], np.array(images, dtype=int)[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (ranked[1:] != ranked[:-1]) | (owners[1:] != owners[:-1])
    starts = np.flatnonzero(begins)
    return _Ranking(
        objects=objects,
        images=owners[starts],
        starts=starts,
        lengths=np.diff(starts, append=len(order)),
        hits=np.concatenate(hits, axis=1)[:, order],
        counted=np.concatenate(counted, axis=1)[:, order],
    )


def _matched(
    boxes: Sequence[dict[str, Any]], truths: Sequence[dict[str, Any]], ignored: Sequence[bool], grid: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes of an image are right and which count, (thresholds, boxes) each."""
    import numpy as np
    from faster_coco_eval import mask

    crowds = [bool(t["iscrowd"]) for t in truths]
    if truths:
        # The scorer's own IoU, to the last bit: boxes may lie exactly on a threshold.
        corners = [[float(v) for v in entry["bbox"]] for entry in (*boxes, *truths)]
        overlaps = mask.iou(corners[: len(boxes)], corners[len(boxes) :], [int(c) for c in crowds]).tolist()
    else:
        overlaps = [[] for _ in boxes]
    right = np.zeros((len(grid.iouThrs), len(boxes)), dtype=int)
    counts = np.ones_like(right)
    outside = [_is_outside(box["bbox"][2] * box["bbox"][3], grid) for box in boxes]
    for step, threshold in enumerate(grid.iouThrs.tolist()):
        for place, match in enumerate(coco_match(overlaps, threshold, ignored, crowds)):
            ignore = outside[place] if match is None else ignored[match]
            right[step, place] = match is not None and not ignore
            counts[step, place] = not ignore
    return right, counts


def _is_outside(area: float, grid: Any) -> bool:
    """Whether an area lies outside of even the range "all", which ends at 1e10 square pixels."""
    low, high = grid.areaRng[0]
    return not low <= area <= high


def _average_precision(ranking: _Ranking, weights: np.ndarray, recalls: np.ndarray) -> float | None:
    """Mean precision over thresholds and recalls of one category; None where it has no object."""
    import numpy as np

    objects = int(ranking.objects @ weights)
    if not objects:
        return None
    runs = np.repeat(np.arange(len(ranking.images)), weights[ranking.images])
    if not len(runs):
        return 0.0
    lengths = ranking.lengths[runs]
    ends = lengths.cumsum()
    drawn = np.repeat(ranking.starts[runs] - (ends - lengths), lengths) + np.arange(ends[-1])
    hits = ranking.hits[:, drawn].cumsum(axis=1)
    precision = hits / np.maximum(ranking.counted[:, drawn].cumsum(axis=1), 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # How many hits reach each recall, by the scorer's own comparison of hits / objects with it.
    needed = np.searchsorted(np.arange(objects + 1) / objects, recalls)
    # One search for all thresholds: each row's hits stand above those of the rows before.
    rows = np.arange(len(hits))[:, None]
    flat = (hits + rows * (objects + 1)).ravel()
    places = np.searchsorted(flat, needed + rows * (objects + 1)) - rows * hits.shape[1]
    reached = places < hits.shape[1]
    values = np.take_along_axis(precision, np.minimum(places, hits.shape[1] - 1), axis=1)
    return float(np.where(reached, values, 0.0).mean())
