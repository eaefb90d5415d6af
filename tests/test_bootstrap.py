"""Intervals by the paired bootstrap; the mAP of a resample against the scorer on images really doubled."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest

from virft import boxes
from virft.metrics import bootstrap, detection

CATEGORIES = [{"id": i, "name": f"class {i}"} for i in (1, 2, 5, 9)]


def scenes(seed: int, images: int = 12, scores: int = 4, whole: bool = True) -> tuple[list, list]:
    """(objects, boxes) of random images: crowds, huge objects, several categories, near misses, equal scores.

    Args:
        seed: of everything.
        images: how many.
        scores: how many different confidences there are; few of them make ties, also within an image.
        whole: whole coordinates, so that overlaps lie exactly on thresholds now and then.
    """
    rng = random.Random(seed)
    objects, found = [], []

    def number(low: float, high: float) -> float:
        return rng.randint(int(low), int(high)) if whole else rng.uniform(low, high)

    for image in range(images):
        for category in (c["id"] for c in CATEGORIES[:3]):  # the last has no object, the third few
            for _ in range(rng.choice((0, 0, 1, 2, 4)) if category < 5 else rng.random() < 0.2):
                bbox = [number(0, 30), number(0, 30), number(4, 24), number(4, 24)]
                objects.append(
                    {
                        "image_id": image,
                        "category_id": category,
                        "bbox": bbox,
                        "iscrowd": int(rng.random() < 0.2),
                        "area": 2e10 if rng.random() < 0.1 else bbox[2] * bbox[3],
                    }
                )
        mine = [o for o in objects if o["image_id"] == image]
        for _ in range(rng.choice((0, 1, 3, 8))):
            target = rng.choice(mine) if mine and rng.random() < 0.8 else None
            if target is not None:
                bbox = [v + number(-2, 2) for v in target["bbox"]]
            elif rng.random() < 0.2:
                bbox = [0, 0, 2e5, 1e5]  # beyond even the range "all"
            else:
                bbox = [number(0, 30), number(0, 30), number(4, 24), number(4, 24)]
            category = target["category_id"] if target else rng.choice(CATEGORIES)["id"]
            score = rng.randint(1, scores) / scores
            found.append({"image_id": image, "category_id": category, "bbox": bbox, "score": score})
    return objects, found


def ready(
    objects: list[dict[str, Any]], found: list[dict[str, Any]], weights: list[int]
) -> tuple[detection.Results, detection.Truth]:
    """Results and truth of a data set in which image i really stands ``weights[i]`` times, side by side."""
    copies: dict[int, list[int]] = {}
    images = []
    for image, weight in enumerate(weights):
        for _ in range(weight):
            images.append({"id": len(images), "file_name": "x.png", "width": 60, "height": 60})
            copies.setdefault(image, []).append(images[-1]["id"])

    def again(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**e, "image_id": copy} for e in entries for copy in copies.get(e["image_id"], ())]

    truth = detection.make_truth(
        {"images": images, "categories": CATEGORIES, "annotations": again(objects)}, CATEGORIES
    )
    return detection.from_coco_results(again(found), truth), truth


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("scores", [1, 4, 10**6])
@pytest.mark.parametrize("seed", range(8))
def test_map_of_a_resample_is_the_scorers_on_doubled_images(seed: int, scores: int, whole: bool) -> None:
    objects, found = scenes(seed, scores=scores, whole=whole)
    results, truth = ready(objects, found, [1] * 12)
    statistic = bootstrap.average_precision(results, truth)
    plain = detection.average_precision(results, truth)["AP"]
    assert 0 < plain < 1
    assert statistic(np.ones(12, dtype=int)) == pytest.approx(plain, abs=1e-12)
    rng = random.Random(seed)
    for _ in range(3):
        weights = [rng.choice((0, 0, 1, 2, 3)) for _ in range(12)]
        doubled = detection.average_precision(*ready(objects, found, weights))["AP"]
        assert statistic(np.array(weights)) == pytest.approx(doubled, abs=1e-12), weights


def test_more_boxes_than_the_scorer_looks_at() -> None:
    objects = [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 10]}]
    wrong = [{"image_id": 0, "category_id": 1, "bbox": [20, 20, 5, 5], "score": 0.9}] * 99
    right = {"image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5}
    for surplus in (0, 1):
        results, truth = ready(objects, wrong + wrong[:surplus] + [right], [1, 1])
        value = bootstrap.average_precision(results, truth)(np.array([2, 0]))
        assert value == pytest.approx(detection.average_precision(results, truth)["AP"], abs=1e-12)
        assert (value > 0) == (surplus == 0)


def test_nothing_found_is_0_and_nothing_to_find_is_undefined() -> None:
    results, truth = ready([{"image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9]}], [], [1, 1])
    statistic = bootstrap.average_precision(results, truth)
    assert statistic(np.array([1, 1])) == 0
    assert statistic(np.array([0, 2])) == -1
    with pytest.raises(ValueError, match="2 images"):
        statistic(np.ones(3, dtype=int))


def test_a_resample_takes_milliseconds() -> None:
    objects, found = scenes(0, images=600, scores=100)
    results, truth = ready(objects, found, [1] * 600)
    started = time.process_time()
    interval = bootstrap.single(bootstrap.average_precision(results, truth), 600, resamples=100)
    assert time.process_time() - started < 5  # some 0.2; the scorer takes as long for two or three
    assert interval.low < interval.change < interval.high


def test_mean_equals_resampling_the_values_themselves() -> None:
    rng = random.Random(0)
    before, after = ([rng.random() for _ in range(41)] for _ in range(2))
    gain = bootstrap.paired(bootstrap.mean(before), bootstrap.mean(after), 41, resamples=500, seed=3)
    difference = np.array(after) - np.array(before)
    drawn = np.random.default_rng(3).integers(0, 41, (500, 41))
    low, high = np.percentile(difference[drawn].mean(axis=1), [2.5, 97.5])
    assert gain.change == pytest.approx(difference.mean())
    assert (gain.low, gain.high) == pytest.approx((low, high))


def test_pairing_takes_out_what_both_share() -> None:
    rng = random.Random(0)
    hard = [rng.random() for _ in range(100)]
    easier = [value + 0.01 for value in hard]
    gain = bootstrap.paired(bootstrap.mean(hard), bootstrap.mean(easier), 100, resamples=200)
    assert (gain.low, gain.change, gain.high) == pytest.approx((0.01, 0.01, 0.01))
    assert gain.excludes_zero
    alone = bootstrap.single(bootstrap.mean(hard), 100, resamples=200)
    assert alone.high - alone.low > 0.05


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        interval = bootstrap.single(bootstrap.mean(rng.normal(1, 2, 60)), 60, resamples=200)
        covered += interval.low <= 1 <= interval.high
    assert 0.9 < covered / 300 < 0.98


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0, 0.1, False)]
)
def test_excluding_zero(low: float, high: float, excludes: bool) -> None:
    assert bootstrap.Interval(0.0, low, high).excludes_zero is excludes


def test_no_units_no_resamples_and_other_units_are_refused() -> None:
    with pytest.raises(ValueError, match="needs units"):
        bootstrap.single(bootstrap.mean([]), 0)
    with pytest.raises(ValueError, match="needs units"):
        bootstrap.single(bootstrap.mean([1.0]), 1, resamples=0)
    with pytest.raises(ValueError, match="mismatch|not aligned"):
        bootstrap.paired(bootstrap.mean([1.0]), bootstrap.mean([1.0, 2.0]), 2)


def test_cocos_matching_prefers_what_counts_and_shares_crowds() -> None:
    overlaps = [[0.6, 0.9], [0.6, 0.9], [0.0, 0.9]]
    assert boxes.coco_match(overlaps, 0.5) == [1, 0, None]
    # The better overlap is with an ignored object: it is taken only once the other is gone.
    assert boxes.coco_match(overlaps, 0.5, [False, True]) == [0, 1, None]
    assert boxes.coco_match(overlaps, 0.5, [False, True], [False, True]) == [0, 1, 1]
    assert boxes.coco_match([[0.7, 0.7]], 0.7) == [1]
    assert boxes.coco_match([[], []], 0.5) == [None, None]
    assert boxes.coco_match([], 0.5) == []
