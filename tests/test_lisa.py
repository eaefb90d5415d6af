"""LISA: its files, its masks, boxes and masks turned into numbers, SAM, continuing, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import suite_cases as cases
from PIL import Image

from virft import prompts
from virft.data import lisa
from virft.data.raster import fill_polygon
from virft.errors import UserError
from virft.evaluate import lisa_boxes, lisa_masks
from virft.metrics import grounding
from virft.types import Box, Prediction

# Drawn by cv2.polylines and cv2.fillPoly (OpenCV 5.0): a concave polygon and one that leaves the image.
DRAWN = (
    (
        [(1, 0), (8.9, 2), (5, 3), (9, 7), (0, 6)],
        [
            "0110000000",
            "0111111000",
            "0111111110",
            "1111111000",
            "1111111000",
            "1111111100",
            "1111111110",
            "0000011111",
        ],
    ),
    (
        [(-3, 2), (6, -2), (12, 5)],
        [
            "0011111100",
            "1111111110",
            "1111111111",
            "0011111111",
            "0000011111",
            "0000000011",
            "0000000000",
            "0000000000",
        ],
    ),
)


@pytest.mark.parametrize(("points", "rows"), DRAWN, ids=["concave", "leaves_image"])
def test_polygons_are_drawn_as_opencv_draws_them(points, rows):
    mask = fill_polygon(points, 10, 8)
    assert ["".join(str(int(v)) for v in row) for row in mask] == rows


def test_a_file_is_read_with_its_encoding_labels_and_spaces(tmp_path):
    path = cases.annotate(tmp_path, "old name.v2", [])
    record = {
        "text": ["the café\u2019s sign"],
        "is_sentence": True,
        "shapes": [
            cases.shape(cases.SQUARE, "Target"),
            cases.shape([[0, 0], [5, 5]], "ignore area", "rectangle"),
            cases.shape(cases.SQUARE, "Flag"),
        ],
    }
    path.write_bytes(json.dumps(record, ensure_ascii=False).encode("cp1252"))
    (read,) = lisa.read_split(tmp_path)
    assert read.instructions == ("the café\u2019s sign",)
    assert read.image.name == "old name.v2.jpg"
    assert [s.label for s in read.shapes] == ["target", "ignore", "flag"]
    assert read.shapes[1].points == ((0, 0), (5, 0), (5, 5), (0, 5))


def test_truth_by_both_rules(tmp_path):
    a, b, d = lisa.read_split(cases.lisa_split(tmp_path))
    assert lisa.truth_box(b) == Box(10, 10, 49, 29)
    assert lisa.truth_box(b, "first_shape") == Box(10, 10, 29, 29)
    target, counted = lisa.truth_mask(b, cases.SIZE)
    assert (target.sum(), counted.all()) == (20 * 20 + 10 * 10, True)
    # The smaller ignored region lies on the target and takes its upper half out of the score.
    target, counted = lisa.truth_mask(d, cases.SIZE)
    assert (target.sum(), (~counted).sum()) == (200, 200)
    target, counted = lisa.truth_mask(d, cases.SIZE, "first_shape")
    assert (target.sum(), counted.all()) == (400, True)


def test_questions_ask_the_first_or_every_instruction(tmp_path):
    read = lisa.read_split(cases.lisa_split(tmp_path))
    first, every = (lisa.grounding_samples(read, which) for which in ("first", "all"))
    assert [s.id for s in first] == ["a#0", "b c#0", "d#0"]
    assert [s.id for s in every] == ["a#0", "a#1", "b c#0", "d#0"]
    assert every[1].prompt == prompts.grounding("the grey thing")
    assert first[0].meta["boxes"]["all"] == Box(10, 10, 29, 29)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda p: p.write_text("{"), "a.json: not JSON"),
        (lambda p: p.write_text('{"text": [], "shapes": []}'), '"text" must be a list'),
        (lambda p: p.write_text('{"text": ["x"]}'), '"shapes" must be a list'),
        (lambda p: p.write_text('{"text": ["x"], "shapes": [{"label": "t", "points": [[1]]}]}'), "shape 0"),
        (
            lambda p: p.write_text(
                '{"text": "x", "shapes": [{"label": "t", "shape_type": "circle", "points": [[1,1], [2,2]]}]}'
            ),
            "shape 0 is a circle",
        ),
        (lambda p: p.with_suffix(".jpg").unlink(), "no image a.jpg"),
        (lambda p: p.unlink(), "holds no .json file"),
    ],
)
def test_broken_files_are_named(tmp_path, break_it, sentence):
    break_it(cases.annotate(tmp_path, "a", [cases.shape(cases.SQUARE)]))
    with pytest.raises(UserError, match=sentence):
        lisa.read_split(tmp_path)


def reply(box: str) -> str:
    return f"<think>I look.</think>\n<answer>{box}</answer>"


def prediction(identity: str, text: str, **changes) -> dict:
    size = {"space": "norm1000", "image_size": cases.SIZE}
    return {"id": identity, "reply": text, **size, **changes}


# In thousandths of 60 x 40: exactly a's box in x 10..29 and y 10..29; half of it; none.
EXACT, HALF = "(166.6667,250),(483.3333,725)", "(166.6667,250),(325,725)"


def test_boxes_to_numbers(tmp_path):
    split = cases.lisa_split(tmp_path / "split")
    lines = [prediction("a#0", reply(EXACT)), prediction("b c#0", "I see nothing")]
    path = cases.write_predictions(tmp_path / "p.jsonl", lines)
    output = tmp_path / "scores.json"
    settings = lisa_boxes.ScoreSettings(str(split), str(path), output=str(output))
    numbers = lisa_boxes.score(settings)
    # a: 1, b: unreadable 0, d: missing 0.
    assert (numbers["miou"], numbers["miou_readable"]) == (
        pytest.approx(1 / 3, abs=1e-6),
        pytest.approx(1, abs=1e-6),
    )
    assert numbers["reasons"] == {"ok": 1, "no_answer": 1, "missing": 1}
    assert json.loads(output.read_text())["miou"] == numbers["miou"]
    # The truth of the score, which may have changed since the questions.
    asked_of = lisa_boxes.questions(str(split))[1]["annotations_sha256"]
    assert numbers["protocol"]["annotations_sha256"] == asked_of
    (split / "a.json").write_text((split / "a.json").read_text() + " ")
    assert lisa_boxes.score(settings)["protocol"]["annotations_sha256"] != asked_of


def test_a_truth_that_reaches_out_of_the_image_can_be_answered(tmp_path):
    cases.annotate(tmp_path, "a", [cases.shape([[-20, -10], [30, -10], [30, 90]])])
    path = cases.write_predictions(tmp_path / "p.jsonl", [prediction("a#0", reply("(0,0),(500,1000)"))])
    numbers = lisa_boxes.score(lisa_boxes.ScoreSettings(str(tmp_path), str(path)))
    assert numbers["miou"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "changes", "box", "reason"),
    [
        (reply("(100,100),(200,1200)"), {}, Box(6, 4, 12, 40), "ok"),
        (reply("(200,100),(100,200)"), {}, None, "inverted_box"),
        (reply("(1100,100),(1200,200)"), {}, None, "outside_image"),
        (reply(""), {}, None, "empty_answer"),
        (
            reply("(56,28),(112,84)"),
            {"space": "abs_resized", "model_size": (112, 84)},
            Box(30, 40 / 3, 60, 40),
            "ok",
        ),
    ],
)
def test_a_reply_becomes_a_box_in_pixels(text, changes, box, reason):
    found = grounding.predicted_box(Prediction(**prediction("x", text, **changes)))
    assert found == (pytest.approx(box) if box else None, reason)


def test_predictions_of_another_split_are_refused(tmp_path):
    split = cases.lisa_split(tmp_path / "split")
    path = cases.write_predictions(tmp_path / "p.jsonl", [prediction("z#0", reply(EXACT))])
    with pytest.raises(UserError, match="'z#0'"):
        lisa_boxes.score(lisa_boxes.ScoreSettings(str(split), str(path)))


def test_mask_numbers_worked_out_by_hand():
    target = np.zeros((4, 4), dtype=bool)
    target[0] = True
    predicted = np.zeros((4, 4), dtype=bool)
    predicted[:2, :2] = True
    counted = np.ones((4, 4), dtype=bool)
    counted[1] = False
    areas = [
        grounding.mask_areas(predicted, target),  # 2 of 6
        grounding.mask_areas(predicted, target, counted),  # 2 of 4
        grounding.mask_areas(None, target),  # a missing mask: 0 of 4
        grounding.mask_areas(None, np.zeros((4, 4), dtype=bool)),  # no target, no mask: IoU 1
    ]
    assert areas == [(2, 6), (2, 4), (0, 4), (0, 0)]
    found = grounding.score_masks(areas)
    assert found.giou == pytest.approx((2 / 6 + 2 / 4 + 0 + 1) / 4)
    assert found.ciou == pytest.approx(4 / 14)


def test_masks_survive_their_encoding_and_read_as_pycocotools_reads_them():
    from pycocotools import mask as pycoco

    mask = np.random.default_rng(0).random((13, 17)) > 0.5
    encoded = grounding.encode_mask(mask)
    assert json.loads(json.dumps(encoded)) == encoded
    assert (grounding.decode_mask(encoded) == mask).all()
    assert (pycoco.decode(encoded) == mask).all()


@pytest.mark.parametrize(("rule", "figures"), [("all", "lisa_official"), ("first_shape", "reference")])
def test_shared_masks(shared_data, tmp_path, rule, figures):
    content = json.loads((shared_data / "lisa_masks.json").read_text())
    lines = []
    for item in content["items"]:
        name = Path(item["image"]).stem
        cases.annotate(tmp_path / "split", name, item["shapes"], item["text"])
        cases.image(tmp_path / "split" / f"{name}.jpg", size=(item["width"], item["height"]))
        lines.append({"id": f"{name}#0", "rle": item["pred_rle"]})
    masks = cases.write_predictions(tmp_path / "masks.jsonl", lines)
    settings = lisa_masks.MaskScoreSettings(str(tmp_path / "split"), str(masks), truth=rule)
    numbers = lisa_masks.score_masks(settings)
    # LISA adds 1e-5 to every union, so its mean differs by some 1e-9.
    assert numbers["giou"] == pytest.approx(content["expected"][figures]["gIoU"], abs=1e-8)
    assert numbers["ciou"] == pytest.approx(content["expected"][figures]["cIoU"], abs=1e-8)
    prefix = "official" if rule == "all" else "ref"
    for row, item in zip(sorted(numbers["rows"], key=lambda r: r["id"]), content["items"], strict=True):
        assert row["id"] == f"{Path(item['image']).stem}#0"
        assert (row["intersection"], row["union"]) == (
            item[f"{prefix}_intersection"],
            item[f"{prefix}_union"],
        )


@pytest.fixture(scope="module")
def sam(tmp_path_factory) -> Path:
    return cases.tiny_sam(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def masks_run(tmp_path, sam) -> lisa_masks.MaskSettings:
    """Settings of a run: one exact box, one half, one unreadable reply."""
    lines = [
        prediction("a#0", reply(EXACT)),
        prediction("b c#0", reply(HALF)),
        prediction("d#0", reply("")),
    ]
    return lisa_masks.MaskSettings(
        annotations=str(cases.lisa_split(tmp_path / "split")),
        predictions=str(cases.write_predictions(tmp_path / "p.jsonl", lines)),
        output=str(tmp_path / "masks.jsonl"),
        sam_model=str(sam),
        device="cpu",
    )


def test_boxes_to_masks_to_numbers(masks_run):
    path = lisa_masks.make_masks(masks_run)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a#0", "b c#0", "d#0"]
    assert [line["reason"] for line in lines] == ["ok", "ok", "empty_answer"]
    assert lines[2]["rle"] is None
    assert lines[0]["rle"]["size"] == [cases.SIZE[1], cases.SIZE[0]]
    numbers = lisa_masks.score_masks(lisa_masks.MaskScoreSettings(masks_run.annotations, str(path)))
    assert numbers["without_mask"] == {"empty_answer": 1}
    assert numbers["rows"][2]["iou"] == 0.0 and numbers["rows"][2]["union"] == 200
    assert numbers["giou"] == pytest.approx(sum(row["iou"] for row in numbers["rows"]) / 3)
    assert numbers["protocol"]["made"]["sam_model"] == masks_run.sam_model


def test_several_boxes_of_an_image_give_the_masks_of_each_alone(sam):
    from virft.masks import BoxSegmenter

    segmenter = BoxSegmenter(str(sam), "cpu")
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    picture, boxes = Image.fromarray(noise), [Box(1, 2, 30, 30), Box(5, 5, 50, 35)]
    together = segmenter.masks(picture, boxes)
    assert together.shape == (2, 40, 60)
    for mask, box in zip(together, boxes, strict=True):
        assert (segmenter.masks(picture, [box])[0] == mask).all()


def test_a_killed_run_continues_and_ends_the_same(masks_run, tmp_path, monkeypatch):
    whole = lisa_masks.make_masks(masks_run).read_text()
    Path(masks_run.output).unlink()
    partial = Path(masks_run.output + ".partial")
    stamp = {
        k: json.loads(Path(masks_run.output).with_name("masks.meta.json").read_text())[k]
        for k in ("sam_model", "dtype", "predictions_sha256")
    }
    first = whole.splitlines()[0]
    partial.write_text(f'{json.dumps(stamp)}\n{first}\n{{"id": "b c#0", "bo')
    asked_again = []
    segment = lisa_masks._segment
    monkeypatch.setattr(
        lisa_masks, "_segment", lambda samples, *rest: asked_again.extend(samples) or segment(samples, *rest)
    )
    assert lisa_masks.make_masks(masks_run).read_text() == whole
    assert [s.id for s in asked_again] == ["b c#0", "d#0"]
    assert not partial.exists()


def test_masks_of_another_sam_are_not_mixed(masks_run):
    lisa_masks.make_masks(masks_run)
    masks_run.sam_model = "another/sam"
    with pytest.raises(UserError, match="sam_model: .* 'another/sam' now"):
        lisa_masks.make_masks(masks_run)


def test_a_folder_without_sam_is_named(masks_run, tmp_path):
    masks_run.sam_model = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="SAM model .*nothing"):
        lisa_masks.make_masks(masks_run)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"id": "a#0"}', 'line 1: needs an "id" and an "rle"'),
        ("{", "line 1: not JSON"),
        ('{"id": "z#0", "rle": null}', "belong to no question"),
        ('{"id": "a#0", "rle": {"size": [5, 7], "counts": "S1"}}', "7 x 5 pixels"),
    ],
)
def test_masks_files_that_do_not_fit_are_refused(tmp_path, line, sentence):
    split = cases.lisa_split(tmp_path / "split")
    (tmp_path / "masks.jsonl").write_text(line + "\n")
    settings = lisa_masks.MaskScoreSettings(str(split), str(tmp_path / "masks.jsonl"))
    with pytest.raises(UserError, match=sentence):
        lisa_masks.score_masks(settings)


def test_an_unknown_rule_is_refused(tmp_path):
    with pytest.raises(UserError, match="--truth 'best'"):
        lisa_boxes.score(lisa_boxes.ScoreSettings(str(tmp_path), "p.jsonl", truth="best"))
