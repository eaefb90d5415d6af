"""Boxes: overlaps as torchvision's, matching, conversions there and back, sizes as the processors'."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virft import boxes
from virft.boxes import FAMILY_SPACE, MODEL_SPACES, SPACES, convert, giou, greedy_match, iou, resized

NUMBER = st.floats(-2000, 2000, allow_nan=False)
ORDERED = st.tuples(NUMBER, NUMBER, NUMBER, NUMBER).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)
ANY = st.tuples(NUMBER, NUMBER, NUMBER, NUMBER)
SIZE = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@given(ANY, ANY)
def test_overlaps_are_bounded_and_symmetric(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    assert 0 <= iou(a, b) <= 1 + 1e-12
    assert iou(a, b) == pytest.approx(iou(b, a))
    assert giou(a, b) == pytest.approx(giou(b, a))


@given(ORDERED, ORDERED)
def test_giou_lies_between_minus_one_and_the_iou(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    assert -1 - 1e-9 <= giou(a, b) <= iou(a, b) + 1e-9


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=1, max_size=5))
def test_overlaps_are_torchvision_s(corners: list[tuple[int, ...]]) -> None:
    import torch
    from torchvision.ops import box_iou, generalized_box_iou

    found = [(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d in corners]
    tensor = torch.tensor(found, dtype=torch.float64)
    ours = torch.tensor([[iou(a, b) for b in found] for a in found], dtype=torch.float64)
    general = torch.tensor([[giou(a, b) for b in found] for a in found], dtype=torch.float64)
    assert torch.allclose(ours, box_iou(tensor, tensor), atol=1e-12)
    assert torch.allclose(general, generalized_box_iou(tensor, tensor), atol=1e-12)


def test_overlaps_without_an_area_are_zero() -> None:
    point, line, inverted = (5, 5, 5, 5), (0, 0, 10, 0), (10, 10, 0, 0)
    for a, b in itertools.product((point, line, inverted, (0, 0, 10, 10)), (point, line, inverted)):
        assert iou(a, b) == 0
    assert giou(point, point) == 0


@given(st.lists(ORDERED, max_size=5), st.lists(ORDERED, max_size=5), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_each_truth_is_matched_at_most_once_and_above_the_threshold(
    predictions: list[tuple[float, ...]], truths: list[tuple[float, ...]], threshold: float
) -> None:
    matches = greedy_match(predictions, truths, threshold)
    assert len(matches) == len(predictions)
    taken = [truth for truth, _ in matches if truth is not None]
    assert len(taken) == len(set(taken))
    for box, (truth, overlap) in zip(predictions, matches, strict=True):
        if truth is None:
            assert overlap == 0
        else:
            assert overlap > threshold and overlap == iou(box, truths[truth])


def test_a_match_needs_more_than_the_threshold_and_the_first_prediction_chooses() -> None:
    assert greedy_match([(0, 0, 50, 100)], [(0, 0, 100, 100)], 0.5) == [(None, 0.0)]
    truths = [(0, 0, 100, 100), (0, 0, 90, 100)]
    matches = greedy_match([(0, 0, 95, 100), (0, 0, 100, 100)], truths, 0.5)
    assert [truth for truth, _ in matches] == [0, 1]


@given(ANY, SIZE, SIZE, st.sampled_from(SPACES), st.sampled_from(SPACES))
def test_conversion_there_and_back(
    box: tuple[float, ...], image: tuple[int, int], model: tuple[int, int], source: str, target: str
) -> None:
    there = convert(box, source, target, image, model)
    back = convert(there, target, source, image, model)
    assert back == pytest.approx(box, rel=1e-9, abs=1e-6)


@given(st.tuples(*[st.integers(0, 1000)] * 4), SIZE, SIZE, st.sampled_from(SPACES))
def test_whole_numbers_come_back_whole_when_rounded(
    box: tuple[int, ...], image: tuple[int, int], model: tuple[int, int], target: str
) -> None:
    back = convert(convert(box, "norm1000", target, image, model), target, "norm1000", image, model)
    assert tuple(round(v) for v in back) == box


@given(ORDERED, ORDERED, SIZE, SIZE, st.sampled_from(SPACES[:3]), st.sampled_from(SPACES[:3]))
def test_overlap_does_not_depend_on_the_space(
    a: tuple[float, ...],
    b: tuple[float, ...],
    image: tuple[int, int],
    model: tuple[int, int],
    one: str,
    two: str,
) -> None:
    converted = [convert(box, one, two, image, model) for box in (a, b)]
    if min(boxes.area(a), boxes.area(b)) > 1e-3:
        assert iou(*converted) == pytest.approx(iou(a, b), abs=1e-6)


def test_conversions_worked_by_hand() -> None:
    assert convert((250, 500, 500, 1000), "norm1000", "pixels", (640, 480)) == (160, 240, 320, 480)
    assert convert((160, 240, 320, 480), "pixels", "xywh", (640, 480)) == (160, 240, 160, 240)
    assert convert((160, 240, 160, 240), "xywh", "norm1000", (640, 480)) == (250, 500, 500, 1000)
    assert convert((160, 240, 320, 480), "pixels", "abs_resized", (640, 480), (1280, 240)) == (
        320,
        120,
        640,
        240,
    )
    assert convert((1, 2, 3, 4), "pixels", "pixels") == (1, 2, 3, 4)
    assert convert((500, 500, 500, 500), "norm1000", "abs_resized", None, (56, 28)) == (28, 14, 28, 14)


@pytest.mark.parametrize(
    ("source", "target", "image", "model", "said"),
    [
        ("norm1000", "nowhere", (1, 1), None, "unknown coordinate space 'nowhere'"),
        ("norm", "pixels", (1, 1), None, "unknown coordinate space 'norm'"),
        ("norm1000", "pixels", None, (1, 1), "pixels needs image_size"),
        ("xywh", "norm1000", (0, 5), None, "xywh needs image_size"),
        ("norm1000", "abs_resized", (1, 1), None, "abs_resized needs model_size"),
    ],
)
def test_a_conversion_that_lacks_something_says_what(
    source: str, target: str, image: tuple | None, model: tuple | None, said: str
) -> None:
    with pytest.raises(ValueError, match=".*") as caught:
        convert((1, 2, 3, 4), source, target, image, model)
    assert said in str(caught.value)


def test_every_family_writes_in_a_space_of_models() -> None:
    assert set(FAMILY_SPACE.values()) <= set(MODEL_SPACES) <= set(SPACES)
    assert FAMILY_SPACE["qwen2_vl"] == "norm1000" and FAMILY_SPACE["qwen2_5_vl"] == "abs_resized"


@settings(max_examples=300, deadline=None)
@given(
    SIZE, st.sampled_from([(3136, 401408), (3136, 12845056), (28 * 28 * 4, 28 * 28 * 16), (200704, 200704)])
)
def test_resized_is_the_processor_s_smart_resize(size: tuple[int, int], limits: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    width, height = size
    if max(size) / min(size) > 200:
        with pytest.raises(ValueError, match="200"):
            resized(size, *limits)
        return
    theirs = smart_resize(height, width, factor=28, min_pixels=limits[0], max_pixels=limits[1])
    assert resized(size, *limits) == (theirs[1], theirs[0])


def test_resized_refuses_sides_that_are_not_positive() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        resized((0, 10), 3136, 401408)
