"""Rewards: bounds, maxima, invariances, formulas, names, TRL's way of calling, the check on solutions."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virft.errors import UserError
from virft.rewards import (
    REASONS,
    REWARDS,
    TASK_REWARDS,
    Outcome,
    check_solutions,
    describe_rewards,
    load_rewards,
)

DETECTION = tuple(name for name, spec in REWARDS.items() if "detection" in spec.tasks)
BOXES = "<answer>[{'Position': [100, 100, 200, 200], 'Confidence': 1}]</answer>"
NONE = "<answer>No Objects</answer>"


def reply(answer: str) -> str:
    return f"<think> t </think> <answer>{answer}</answer>"


def written(boxes: list[tuple[tuple[int, ...], float | None]]) -> str:
    parts = [f"{{'Position': {[*b]}" + ("}" if c is None else f", 'Confidence': {c}}}") for b, c in boxes]
    return f"[{', '.join(parts)}]" if parts else "No Objects"


def value(name: str, completion: str, solution: str, **columns: Any) -> float | None:
    (reward,) = load_rewards([name])
    return reward.score(completion, {"solution": solution, **columns}).value


def box(low: int = 0, high: int = 1000) -> st.SearchStrategy[tuple[int, int, int, int]]:
    corner = st.tuples(st.integers(low, high - 1), st.integers(low, high - 1))
    side = st.tuples(st.integers(1, 400), st.integers(1, 400))
    return st.tuples(corner, side).map(lambda v: (v[0][0], v[0][1], v[0][0] + v[1][0], v[0][1] + v[1][1]))


CONFIDENCE = st.integers(0, 100).map(lambda v: v / 100)
TRUTHS = st.lists(box(), max_size=6, unique=True)
ANY_BOX = st.tuples(*[st.integers(-50, 1100)] * 4)
PREDICTIONS = st.lists(st.tuples(box() | ANY_BOX, st.none() | CONFIDENCE), max_size=6)


def solution_of(truths: list[tuple[int, ...]]) -> str:
    return f"<answer>{written([(b, 1) for b in truths])}</answer>"


# --------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", [*DETECTION, "mask_iou", "format"])
@settings(max_examples=60, deadline=None)
@given(predictions=PREDICTIONS, truths=TRUTHS, junk=st.text(max_size=5))
def test_values_are_bounded_and_have_a_reason(
    name: str, predictions: list[Any], truths: list[Any], junk: str
) -> None:
    (reward,) = load_rewards([name])
    for text in (reply(written(predictions)), reply(written(predictions)) + junk, junk):
        outcome = reward.score(text, {"solution": solution_of(truths)})
        assert math.isfinite(outcome.value) and 0 <= outcome.value <= reward.maximum
        assert outcome.reason in REASONS


@pytest.mark.parametrize("name", [*DETECTION, "mask_iou", "format"])
@settings(max_examples=40, deadline=None)
@given(truths=TRUTHS)
def test_the_solution_earns_the_maximum(name: str, truths: list[Any]) -> None:
    (reward,) = load_rewards([name])
    check_solutions([reward], [{"solution": solution_of(truths)}])
    assert reward.score(
        reply(written([(b, 1) for b in truths])), {"solution": solution_of(truths)}
    ).value == (pytest.approx(reward.maximum))


@pytest.mark.parametrize("name", DETECTION)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), truths=TRUTHS.filter(bool), boxes=st.lists(box(), min_size=1, max_size=6, unique=True))
def test_the_order_of_predictions_and_truths_does_not_matter(
    name: str, data: st.DataObject, truths: list[Any], boxes: list[Any]
) -> None:
    # Equal confidences are matched in the order written, by rule; so they are all different here.
    scores = data.draw(st.lists(CONFIDENCE, min_size=len(boxes), max_size=len(boxes), unique=True))
    predictions = list(zip(boxes, scores, strict=True))
    first = value(name, reply(written(predictions)), solution_of(truths))
    shuffled = reply(written(data.draw(st.permutations(predictions))))
    assert value(name, shuffled, solution_of(truths)) == pytest.approx(first, abs=1e-9)


@pytest.mark.parametrize("name", DETECTION)
@settings(max_examples=30, deadline=None)
@given(truths=TRUTHS.filter(bool), predictions=PREDICTIONS.filter(bool))
def test_repeating_boxes_changes_nothing(name: str, truths: list[Any], predictions: list[Any]) -> None:
    once = value(name, reply(written(predictions)), solution_of(truths))
    assert value(name, reply(written(predictions * 3)), solution_of(truths)) == pytest.approx(once)


@pytest.mark.parametrize("name", [n for n in DETECTION if "confidence" not in n and n != "sample_map"])
@settings(max_examples=40, deadline=None)
@given(truths=TRUTHS.filter(bool), surplus=st.integers(1, 5))
def test_surplus_boxes_cost(name: str, truths: list[Any], surplus: int) -> None:
    right = [(b, 1) for b in truths]
    wrong = [((5000 + 100 * i, 5000, 5050 + 100 * i, 5050), 0.1) for i in range(surplus)]
    assert value(name, reply(written(right + wrong)), solution_of(truths)) < 1 - 1e-6


@pytest.mark.parametrize("name", DETECTION)
@given(truths=TRUTHS.filter(bool))
@settings(max_examples=20, deadline=None)
def test_no_objects_rules(name: str, truths: list[Any]) -> None:
    some, none = solution_of(truths), NONE
    boxes = written([(b, 0.1) for b in truths])
    (reward,) = load_rewards([name])
    assert reward.score(reply("No Objects"), {"solution": none}) == Outcome(1.0, "agree_none")
    assert reward.score(reply("[]"), {"solution": none}) == Outcome(1.0, "agree_none")
    assert reward.score(reply(boxes), {"solution": none}) == Outcome(0.0, "false_alarm")
    assert reward.score(reply("No Objects"), {"solution": some}) == Outcome(0.0, "missed")
    assert reward.score(reply(""), {"solution": none}) == Outcome(0.0, "empty_answer")


@given(truth=box(), predicted=ANY_BOX | box())
@settings(deadline=None)
def test_grounding_is_bounded_symmetric_and_wants_ordered_corners(truth: Any, predicted: Any) -> None:
    def text(b: Any) -> str:
        return reply(f"({b[0]},{b[1]}),({b[2]},{b[3]})")

    got = value("accuracy_grounding", text(predicted), text(truth))
    assert 0 <= got <= 2
    if predicted[0] > predicted[2] or predicted[1] > predicted[3]:
        assert got == 0
    else:
        assert value("accuracy_grounding", text(truth), text(predicted)) == pytest.approx(got)
    assert value("accuracy_grounding", text(truth), text(truth)) == 2
    x1, y1, x2, y2 = truth
    for swapped in ((x2, y1, x1, y2), (x1, y2, x2, y1), (x2, y2, x1, y1)):
        assert value("accuracy_grounding", text(swapped), text(truth)) == 0


# ------------------------------------------------------------------------------------------------ formulas

TWO = (
    "<answer>[{'Position': [0, 0, 100, 100], 'Confidence': 1}, "
    "{'Position': [200, 0, 300, 100], 'Confidence': 1}]</answer>"
)
MIXED = reply(  # IoU 0.8 with the first truth, 0.6 with the second, and one false alarm
    "[{'Position': [0, 0, 80, 100], 'Confidence': 0.9}, {'Position': [200, 0, 260, 100], 'Confidence': 0.7},"
    " {'Position': [500, 500, 600, 600], 'Confidence': 0.2}]"
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy_iou", (0.8 + 0.6) / 3),
        ("accuracy_iou:threshold=0.7", 0.8 / 3),
        ("accuracy_iou:threshold=0.6", 0.8 / 3),  # strictly above
        ("accuracy_iou:denominator=paper", (0.8 + 0.6) / 3),
        ("accuracy_confidence", (0.9 + 0.7 + 0.8) / 3),
        ("accuracy_confidence:threshold=0.7", (0.9 + 0.3 + 0.8) / 3),
        ("iou_squared", (0.64 + 0.36) / 3),
        ("brier_confidence", (3 - 0.01 - 0.09 - 0.04) / 3),
        ("count", 2 / 3),
        ("hungarian_iou", 2 / 3),
        ("hungarian_iou:threshold=0.7", 1 / 3),
        ("hungarian_l1", 1 / 3),  # distances 20 / 4 and 40 / 4: the second is not below 10
        ("hungarian_l1:distance=10.1", 2 / 3),
        ("weighted_sum", 0.7 * 0.7 + 0.3 * (1 - (0 + 1 / 3) / 2)),
        ("weighted_sum:position=1,completeness=1", (0.7 + 5 / 6) / 2),
        ("sample_map:iou=0.5", 1.0),
        ("sample_map:iou=0.7", 51 / 101),
        ("od_length:iou=0.5", 2 / 3),
        ("scheduled_iou", (0.8 + 0.6) / 3),
    ],
)
def test_a_case_worked_by_hand(name: str, expected: float) -> None:
    assert value(name, MIXED, TWO) == pytest.approx(expected)


def test_the_denominators_differ_where_boxes_are_missed() -> None:
    one = reply("[{'Position': [0, 0, 80, 100], 'Confidence': 0.9}]")
    assert value("accuracy_iou", one, TWO) == pytest.approx(0.4)
    assert value("accuracy_iou:denominator=paper", one, TWO) == pytest.approx(0.8)


def test_the_scheduled_threshold_follows_the_training() -> None:
    class State:
        def __init__(self, global_step: int, max_steps: int) -> None:
            self.global_step, self.max_steps = global_step, max_steps

    def at(step: int) -> float:
        return value("scheduled_iou:start=0.5,end=0.9", MIXED, TWO, trainer_state=State(step, 100))

    assert [at(0), at(20), at(30), at(80), at(1000)] == pytest.approx([1.4 / 3, 1.4 / 3, 0.8 / 3, 0, 0])


def test_giou_grows_as_a_box_comes_nearer_before_it_overlaps() -> None:
    values = [
        value("giou", reply(f"[{{'Position': [{x}, 100, {x + 50}, 200], 'Confidence': 1}}]"), BOXES)
        for x in (900, 600, 300, 120, 140)
    ]
    assert values == sorted(values) and values[0] > 0


def test_greedy_takes_the_more_confident_box_and_the_assignment_the_better_one() -> None:
    text = reply(
        "[{'Position': [100, 100, 200, 180], 'Confidence': 0.9}, "
        "{'Position': [100, 100, 200, 200], 'Confidence': 0.5}]"
    )
    assert value("accuracy_iou", text, BOXES) == pytest.approx(0.4)
    assert value("hungarian_iou:threshold=0.9", text, BOXES) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(12))
def test_sample_map_is_coco_s(seed: int) -> None:
    import random

    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    import contextlib
    import io

    draw = random.Random(seed)

    def draw_box() -> list[int]:
        x, y = draw.randint(0, 800), draw.randint(0, 800)
        return [x, y, x + draw.randint(20, 200), y + draw.randint(20, 200)]

    truths = [draw_box() for _ in range(draw.randint(1, 6))]
    predictions = [[v + draw.randint(-8, 8) for v in b] for b in truths] + [draw_box() for _ in range(4)]
    predictions = [b for b in predictions if b[2] > b[0] and b[3] > b[1]]
    scores = [draw.randint(0, 10) / 10 for _ in predictions]
    xywh = [[[b[0], b[1], b[2] - b[0], b[3] - b[1]] for b in side] for side in (truths, predictions)]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco.COCO()
        gt.dataset = {
            "images": [{"id": 1}],
            "categories": [{"id": 1}],
            "annotations": [
                {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
                for i, b in enumerate(xywh[0])
            ],
        }
        gt.createIndex()
        dt = gt.loadRes(
            [
                {"image_id": 1, "category_id": 1, "bbox": b, "score": s}
                for b, s in zip(xywh[1], scores, strict=True)
            ]
        )
        run = evaluation.COCOeval(gt, dt, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    text = reply(written(list(zip(map(tuple, predictions), scores, strict=True))))
    assert value("sample_map", text, solution_of(truths)) == pytest.approx(run.stats[0], abs=1e-9)
    assert value("sample_map:iou=0.5", text, solution_of(truths)) == pytest.approx(run.stats[1], abs=1e-9)


def test_brier_is_proper_and_the_linear_rule_is_not() -> None:
    def expected(name: str, share: float, confidence: float) -> float:
        right = reply(f"[{{'Position': [100, 100, 200, 200], 'Confidence': {confidence}}}]")
        wrong = reply(f"[{{'Position': [500, 500, 600, 600], 'Confidence': {confidence}}}]")
        return share * value(name, right, BOXES) + (1 - share) * value(name, wrong, BOXES)

    grid = [c / 20 for c in range(21)]
    for share in (0.25, 0.4, 0.7):
        assert max(grid, key=lambda c: expected("brier_confidence", share, c)) == pytest.approx(share)
        assert max(grid, key=lambda c: expected("accuracy_confidence", share, c)) in (0, 1)


def test_mask_iou_of_polygons_and_boxes() -> None:
    square = reply("[{'polygon': [[0, 0], [100, 0], [100, 100], [0, 100]]}]")
    half = reply("[{'polygon': [0, 0, 100, 0, 0, 100]}]")
    box = reply("[{'Position': [0, 0, 100, 100], 'Confidence': 1}]")
    assert value("mask_iou", square, box) == value("mask_iou", box, square) == 1
    assert value("mask_iou", half, square) == pytest.approx(0.5, abs=0.01)
    other = reply("[{'polygon': [100, 0, 100, 100, 0, 100]}]")
    assert value("mask_iou", half, other) < 0.02
    both = reply("[{'polygon': [0, 0, 100, 0, 0, 100]}, {'polygon': [100, 0, 100, 100, 0, 100]}]")
    assert value("mask_iou", both, square) == pytest.approx(1, abs=0.01)
    huge = reply("[{'polygon': [0, 0, 1000000, 0, 1000000, 1000000, 0, 1000000]}]")
    assert value("mask_iou", huge, square) < 0.001
    assert value("mask_iou", reply("[{'polygon': [1, 2, 3, 4]}]"), square) == 0
    speck = "{'polygon': [0, 0, 1, 0, 1, 1]}"
    for far in (1000, 999_000):  # no junk far away may blur what is near
        junk = f"{{'polygon': [{far}, {far}, {far + 1}, {far}, {far}, {far + 1}]}}"
        assert value("mask_iou", reply(f"[{speck}, {junk}]"), square) < 0.001
        assert value("mask_iou", reply(f"[{speck}, {junk}]"), reply(f"[{speck}]")) < 0.5
    shifted = reply("[{'Position': [50, 0, 150, 100], 'Confidence': 1}]")
    around = reply("[{'Position': [-50, -50, 150, 150], 'Confidence': 1}]")
    assert value("mask_iou", shifted, square) == pytest.approx(1 / 3, abs=0.01)
    assert value("mask_iou", around, square) == pytest.approx(1 / 4, abs=0.01)
    flat = reply("[{'polygon': [0, 0, 400, 0, 400, 10, 0, 10]}]")
    assert value("mask_iou", reply("[{'polygon': [0, 0, 400, 0, 400, 20, 0, 20]}]"), flat) == pytest.approx(
        0.5, abs=0.05
    )
    (reward,) = load_rewards(["mask_iou"])
    column = {"solution": box, "polygons": [[0, 0, 100, 0, 0, 100]]}
    assert reward.score(half, column).value == 1
    assert reward.score(box, column) == Outcome(pytest.approx(0.5, abs=0.01), "box_for_mask")
    check_solutions([reward], [column])


@pytest.mark.parametrize(
    ("answer", "aliases", "expected"),
    [
        ("garden phlox", None, 1),
        ("Garden_Phlox.", None, 1),
        ("Phlox paniculata", None, 0),
        ("Phlox paniculata", ["Phlox paniculata", "perennial phlox"], 1),
        ("phlox-paniculata", "Phlox paniculata", 1),
        ("phlox", ["garden phlox"], 0),
        ("_", ["", "_"], 0),
    ],
)
def test_classes_and_their_aliases(answer: str, aliases: Any, expected: float) -> None:
    assert value("accuracy", reply(answer), "<answer>garden phlox</answer>", aliases=aliases) == expected


def test_a_solution_that_cannot_be_read_is_named_as_such() -> None:
    boxes = solution_of([(1, 2, 3, 4)])
    assert load_rewards(["accuracy"])[0].score(boxes, {"solution": boxes}) == Outcome(0.0, "bad_solution")
    for name in (*DETECTION, "mask_iou"):
        (reward,) = load_rewards([name])
        for broken in ("what?", "<answer>[{'Position': [1, 2, 3]}]</answer>"):
            assert reward.score(reply("[]"), {"solution": broken}) == Outcome(0.0, "bad_solution")
        partly = "<answer>[{'Position': [1, 2, 3]}, {'Position': [1, 2, 3, 4]}]</answer>"
        assert name == "mask_iou" or reward.score(reply("[]"), {"solution": partly}).reason == "bad_solution"


# --------------------------------------------------------------------------------------- names and parameters


def test_every_task_has_rewards_of_the_table() -> None:
    assert set(TASK_REWARDS) == {"detection", "classification", "grounding"}
    assert all(name in REWARDS for names in TASK_REWARDS.values() for name in names)
    assert all(name in describe_rewards() for name in REWARDS)


def test_names_are_plain_where_they_are_unique() -> None:
    rewards = load_rewards(["accuracy_iou:threshold=0.75", "format"])
    assert [r.__name__ for r in rewards] == ["accuracy_iou", "format"]
    twice = load_rewards(["accuracy_iou", "accuracy_iou:threshold=0.75"])
    assert [r.__name__ for r in twice] == ["accuracy_iou", "accuracy_iou:threshold=0.75"]


def test_parameters_by_keyword_reach_the_rewards_that_have_them() -> None:
    rewards = load_rewards(["accuracy_iou", "accuracy_iou:threshold=0.5", "format"], threshold=0.7)
    got = [reward.score(MIXED, {"solution": TWO}).value for reward in rewards]
    assert got == pytest.approx([0.8 / 3, 1.4 / 3, 1])


@pytest.mark.parametrize(
    ("names", "parameters", "said"),
    [
        (["nope"], {}, "unknown reward 'nope'; known: accuracy_iou"),
        (["accuracy_iou", "accuracy_iou"], {}, "named twice"),
        (["accuracy_iou:threshold=1"], {}, "threshold=1 is not allowed"),
        (["accuracy_iou:threshold=nan"], {}, "threshold=nan is not allowed"),
        (["accuracy_iou:threshold=true"], {}, "not allowed"),
        (["accuracy_iou:denominator=mean"], {}, "denominator=mean is not allowed"),
        (["accuracy_iou:size=1"], {}, "no parameter 'size'; its parameters: threshold, denominator"),
        (["format:threshold=1"], {}, "its parameters: none"),
        (["accuracy_iou:threshold="], {}, "cannot read the reward"),
        (["accuracy_iou:threshold"], {}, "cannot read the reward"),
        (["accuracy_iou:threshold=0.1,threshold=0.2"], {}, "cannot read the reward"),
        (["=0.1"], {}, "cannot read the reward"),
        ([""], {}, "cannot read the reward"),
        (["format"], {"threshold": 0.5}, "no named reward has the parameter threshold"),
        (["nowhere.py:f"], {}, "nowhere.py does not exist"),
        (["no_such_package.mod:f"], {}, "module 'no_such_package'"),
        (["json:nothing"], {}, "json has no function 'nothing'"),
        (["not a module:f"], {}, "neither file.py:function nor"),
        (["json:JSONDecoder"], {}, "is not a function"),
        (["json:__name__"], {}, "is not a function"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_sentence(
    names: list[str], parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=".*") as caught:
        load_rewards(names, **parameters)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- TRL's call


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_called_as_trl_calls_it() -> None:
    (reward,) = load_rewards(["accuracy_iou"])
    logged: dict[str, float] = {}
    columns = {
        "prompts": [messages("p")] * 3,
        "completion_ids": [[1], [2], [3]],
        "solution": [BOXES, NONE, BOXES],
        "trainer_state": object(),
        "log_extra": lambda *_: None,
        "log_metric": logged.__setitem__,
    }
    completions = [messages(reply(BOXES[8:-9])), messages("nothing"), reply("[]")]
    assert reward(completions=completions, **columns) == [1.0, 0.0, 0.0]
    third = pytest.approx(1 / 3)
    assert logged == {
        "reasons/accuracy_iou/ok": third,
        "reasons/accuracy_iou/no_answer": third,
        "reasons/accuracy_iou/missed": third,
    }
    logged.clear()
    reward(completions=[reply("[]")], solution=[NONE], log_metric=logged.__setitem__)
    assert logged == {
        "reasons/accuracy_iou/agree_none": 1
    }  # the trainer completes it with other batches' codes
    assert all(name.startswith(reward.reason_metrics) for name in logged)


def test_parts_of_a_message_are_joined() -> None:
    (reward,) = load_rewards(["format"])
    parts = [
        {"type": "text", "text": "<think></think>"},
        {"type": "image"},
        {"type": "text", "text": "<answer>"},
    ]
    completion = [{"role": "assistant", "content": parts}, {"role": "assistant", "content": "x</answer>"}]
    assert reward([completion], solution=[""]) == [1.0]


def test_what_a_tool_says_is_not_the_reply() -> None:
    """With TRL's tools a completion holds calls, which may have no text, and the tools' answers."""
    reward, form = load_rewards(["accuracy", "format"])
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    completion = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "name": "look", "content": [{"type": "text", "text": "<answer>tulip</answer>"}]},
        {"role": "assistant", "content": "<think></think><answer>rose</answer>"},
    ]
    solutions = ["<answer>rose</answer>"]
    assert reward([completion], solution=solutions) == form([completion], solution=solutions) == [1.0]
    assert reward([completion[:2]], solution=["<answer>tulip</answer>"]) == [0.0]
    with pytest.raises(UserError, match="messages with 'content'"):
        reward([[{"role": "assistant"}]], solution=solutions)


def test_rows_of_another_task_have_no_value() -> None:
    iou, form = load_rewards(["accuracy_iou", "format"])
    columns = {"solution": ["<answer>tulip</answer>"] * 2, "task": ["classification", "a task of mine"]}
    assert iou([reply("tulip")] * 2, **columns) == [None, 0.0]
    assert form([reply("tulip")] * 2, **columns) == [1.0, 1.0]


def test_a_row_without_a_solution_or_a_completion_without_text_is_the_user_s_error() -> None:
    (reward,) = load_rewards(["accuracy_iou"])
    with pytest.raises(UserError, match="column 'solution'"):
        reward([reply("[]")])
    with pytest.raises(UserError, match="a completion must be text"):
        reward([3], solution=[NONE])


# ---------------------------------------------------------------------------------------- check on solutions


def test_every_row_that_earns_less_is_named() -> None:
    rewards = load_rewards(TASK_REWARDS["detection"])
    rows = [{"solution": BOXES}, {"solution": NONE}, {"solution": BOXES[8:-9]}]
    check_solutions(rewards, rows)
    bad = [{"solution": "<answer>tulip</answer>"}] * 7
    twice = {"solution": "<answer>[{'bbox': [1, 1, 5, 5]}, {'bbox': [1, 1, 5, 5]}]</answer>"}
    flat = {"solution": "<answer>[{'bbox': [1, 1, 1, 5]}]</answer>"}
    with pytest.raises(UserError) as caught:
        check_solutions(rewards, [*rows, twice, flat, *bad])
    text = str(caught.value)
    assert "accuracy_iou" in text and "accuracy_confidence" in text and "\n" not in text
    assert "rows 3 (0.5, ok), 4 (0, no_match), 5 (0, bad_solution)" in text and "and 6 more" in text


def test_a_truth_without_confidence_is_no_fault() -> None:
    check_solutions(load_rewards(TASK_REWARDS["detection"]), [{"solution": "[{'bbox_2d': [1, 2, 30, 40]}]"}])


def test_importing_rewards_loads_nothing_heavy() -> None:
    code = (
        "import sys, virft.rewards as r;"
        "rewards = r.load_rewards([n for n in r.REWARDS if not n.startswith(('hung', 'giou', 'mask'))]);"
        "[w.score('<answer>[]</answer>', {'solution': '<answer>[]</answer>'}) for w in rewards];"
        "print([m for m in ('torch', 'numpy', 'scipy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
