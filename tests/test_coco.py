"""Questions from COCO and LVIS annotations, and numbers from replies or results."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from virft import prompts
from virft.data import coco
from virft.errors import UserError
from virft.evaluate import coco as suite
from virft.metrics import detection
from virft.predictions import load_predictions
from virft.types import Prediction

CATS = [{"id": 1, "name": "cat"}, {"id": 2, "name": "hot dog"}, {"id": 7, "name": "hair drier"}]


def annotations(**changes: Any) -> dict[str, Any]:
    """Two images of 200 x 100 pixels: a cat on the first, two hot dogs (one a crowd) on the second."""
    content = {
        "images": [
            {"id": 10, "file_name": "a.png", "width": 200, "height": 100},
            {"id": 11, "file_name": "b.png", "width": 200, "height": 100},
        ],
        "categories": copy.deepcopy(CATS),
        "annotations": [
            {"id": 0, "image_id": 10, "category_id": 1, "bbox": [20, 10, 100, 50], "iscrowd": 0},
            {"id": 1, "image_id": 11, "category_id": 2, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0},
            {"id": 2, "image_id": 11, "category_id": 2, "bbox": [100, 0, 90, 90], "iscrowd": 1},
        ],
    }
    return content | changes


def reply(*boxes: tuple[list[float], Any]) -> str:
    """A reply with these (corners, confidence)."""
    listed = ", ".join(f"{{'Position': {corners}, 'Confidence': {score}}}" for corners, score in boxes)
    return f"<think>I look.</think><answer>[{listed}]</answer>"


def prediction(image: Any, category: Any, text: str, **changes: Any) -> Prediction:
    """A reply about a pair, in norm1000 unless changed."""
    fields = {"space": "norm1000", "image_size": (200, 100)} | changes
    return Prediction(
        f"{image}/{category}",
        text,
        meta={"image_id": image, "category_id": category, "category": "x"},
        **fields,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the annotations and (empty) image files."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "gt.json").write_text(json.dumps(annotations()))
    return tmp_path


# ------------------------------------------------------------------------------------------------ questions


def test_one_question_for_each_image_and_category(folder: Path) -> None:
    samples = coco.detection_samples(annotations(), folder, space="abs_resized")
    assert [s.id for s in samples] == ["10/1", "10/2", "10/7", "11/1", "11/2", "11/7"]
    assert samples[1].images == (str(folder / "a.png"),)
    assert samples[1].prompt == prompts.detection("hot dog", "abs_resized")
    assert samples[1].meta == {"image_id": 10, "category_id": 2, "category": "hot dog"}


def test_ground_truth_candidates_are_the_annotated_pairs(folder: Path) -> None:
    samples = coco.detection_samples(annotations(), folder, candidates="ground_truth")
    assert [s.id for s in samples] == ["10/1", "11/2"]


def test_a_candidates_file_names_the_pairs(folder: Path) -> None:
    (folder / "asked.json").write_text(json.dumps({"10": ["Hair_Drier", "cat"], "99": ["cat"]}))
    samples = coco.detection_samples(annotations(), folder, candidates=str(folder / "asked.json"))
    assert [s.id for s in samples] == ["10/1", "10/7"]
    chosen = coco.detection_samples(annotations(), folder, ["cat"], str(folder / "asked.json"))
    assert [s.id for s in chosen] == ["10/1"]


@pytest.mark.parametrize(("max_images", "without"), [(None, 1), (1, 0)])
def test_images_without_candidates_are_counted_among_those_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], max_images: int | None, without: int
) -> None:
    (folder / "asked.json").write_text(json.dumps({"10": ["cat"]}))
    chosen = suite.Settings(
        annotations=str(folder / "gt.json"), candidates=str(folder / "asked.json"), max_images=max_images
    )
    said = suite.stated(chosen, annotations())
    assert (said["images_without_candidates"], said["candidates_unknown_images"]) == (without, 0)
    assert ("1 of 2 images are not in" in capsys.readouterr().out) == bool(without)


def test_ids_may_be_text_in_one_file_and_numbers_in_another(folder: Path) -> None:
    content = annotations()
    for a in content["annotations"]:
        a["image_id"] = str(a["image_id"])
    assert len(coco.detection_samples(content, folder, candidates="ground_truth")) == 2


def test_max_images_takes_the_first(folder: Path) -> None:
    assert {s.meta["image_id"] for s in coco.detection_samples(annotations(), folder, max_images=1)} == {10}


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("all", ["cat", "hot dog", "hair drier"]),
        (["HOT_DOG"], ["hot dog"]),
        (["hair dryer", "cat"], ["cat", "hair drier"]),
        ("base65", []),
    ],
)
def test_categories_by_name_alias_and_preset(chosen: Any, names: list[str]) -> None:
    if not names:
        with pytest.raises(UserError, match="chose no category"):
            coco.choose_categories(annotations(), chosen)
        return
    assert [c["name"] for c in coco.choose_categories(annotations(), chosen)] == names


def test_presets_split_coco_into_65_base_and_15_novel(shared_data: Path) -> None:
    content = coco.load_annotations(shared_data / "coco/instances_val2014_100.json")
    base = {c["name"] for c in coco.choose_categories(content, "base65")}
    novel = {c["name"] for c in coco.choose_categories(content, "novel15")}
    assert (len(base), len(novel)) == (65, 15)
    assert base | novel == {c["name"] for c in content["categories"]}
    assert len(coco.choose_categories(content, "fewshot8")) == 8


def test_lvis_presets_paths_and_names(shared_data: Path) -> None:
    content = coco.load_annotations(shared_data / "lvis/lvis_val_100.json")
    assert coco.is_lvis(content)
    assert len(coco.choose_categories(content, "fewshot6")) == 6
    assert len(coco.choose_categories(content, "rare13")) == 13
    samples = coco.detection_samples(
        content, shared_data, ["horse_buggy"], max_images=1, require_images=False
    )
    assert samples[0].images == (str(shared_data / "val2017/000000266409.jpg"),)
    assert "'horse buggy'" in samples[0].prompt
    # A synonym of another category's does not go before a category's own name.
    assert [c["name"] for c in coco.choose_categories(content, "horse carriage")] == ["horse_carriage"]
    assert [c["name"] for c in coco.choose_categories(content, "spray can")] == ["aerosol_can"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no such file"),
        ("{", "line 1: not valid JSON"),
        ("[]", "holds an object, not a list"),
        ('{"images": []}', "no list 'categories'"),
        ('{"images": [], "categories": [{"id": 1, "name": "x"}], "annotations": []}', "'images' is empty"),
        (
            '{"images": [{"id": 1}], "categories": [{"id": 1, "name": "x"}], "annotations": [{"image_id": 1}]'
            "}",
            "entry 0 of 'annotations' has no 'category_id'",
        ),
    ],
)
def test_what_is_no_annotation_file_is_refused(content: str | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "gt.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        coco.load_annotations(path)


def test_ids_that_a_table_wrote_as_decimals_are_whole(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((folder / "gt.json").read_text())
    for entry in content["annotations"]:
        entry["image_id"], entry["category_id"] = float(entry["image_id"]), float(entry["category_id"])
    (tmp_path / "floats.json").write_text(json.dumps(content))
    read, plain = (coco.load_annotations(f) for f in (tmp_path / "floats.json", folder / "gt.json"))
    assert not caplog.records
    pairs = [coco.asked_pairs(c, c["categories"], "ground_truth") for c in (read, plain)]
    assert pairs[0] and pairs[0] == pairs[1]


def test_annotations_that_do_not_count_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = annotations()
    content["annotations"][1]["image_id"] = "11"  # text and numbers are the same id
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    coco.load_annotations(path)
    assert not caplog.messages
    content["annotations"][2]["category_id"] = 99
    path.write_text(json.dumps(content))
    coco.load_annotations(path)
    assert "1 of 3 do not count, for their category_id is none of its categories; the first is entry 2" in (
        caplog.text
    )


def test_refusals_of_the_sample_builder(folder: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        coco.detection_samples(annotations(), folder / "nowhere")
    with pytest.raises(UserError, match="'hot dgo' is no category.*did you mean 'hot dog'"):
        coco.detection_samples(annotations(), folder, ["hot dgo"])
    (folder / "b.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images are missing, the first is .*b\.png.*--image_folder"):
        coco.detection_samples(annotations(), folder)
    assert len(coco.detection_samples(annotations(), folder, require_images=False)) == 6
    with pytest.raises(UserError, match="no chosen category is to be asked"):
        coco.detection_samples(annotations(), folder, ["hair drier"], "ground_truth")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (["cat"], "must hold an object"),
        ({"10": "cat"}, "must hold an object"),
        ({"10": ["unicorn"]}, "image 10: 'unicorn' is no category"),
        ({"99": ["cat"]}, "none of its image ids"),
    ],
)
def test_candidates_that_do_not_fit_are_refused(content: Any, sentence: str, folder: Path) -> None:
    (folder / "asked.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        coco.detection_samples(annotations(), folder, candidates=str(folder / "asked.json"))


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("case", "truth", "found"),
    [
        ("val2014_100_fakebbox", "instances_val2014_100.json", "instances_val2014_fakebbox100_results.json"),
        ("detectron2_two_images", "detectron2_gt.json", "detectron2_dt.json"),
        ("torchmetrics_inputs", "torchmetrics_gt.json", "torchmetrics_dt.json"),
    ],
)
def test_the_figures_of_pycocotools(case: str, truth: str, found: str, shared_data: Path) -> None:
    expected = json.loads((shared_data / "coco/expected.json").read_text())[case]
    ready = detection.make_truth(coco.load_annotations(shared_data / "coco" / truth))
    entries = json.loads((shared_data / "coco" / found).read_text())
    numbers = detection.average_precision(detection.from_coco_results(entries, ready), ready)
    for name, value in expected["computed_pycocotools"].items():
        assert numbers[name] == pytest.approx(value, abs=1e-12), name
    for name, value in expected["per_class_AP"].items():
        assert numbers["per_category"][name]["AP"] == pytest.approx(value, abs=1e-12), name
    for name, value in expected["per_class_AP50"].items():
        assert numbers["per_category"][name]["AP50"] == pytest.approx(value, abs=1e-12), name


def test_chosen_categories_equal_pycocotools_on_them(shared_data: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path = shared_data / "coco/instances_val2014_100.json"
    found = shared_data / "coco/instances_val2014_fakebbox100_results.json"
    content = coco.load_annotations(path)
    chosen = coco.choose_categories(content, "fewshot8")
    truth = detection.make_truth(content, chosen)
    results = detection.from_coco_results(json.loads(found.read_text()), truth)
    stock = COCO(str(path))
    evaluation = COCOeval(stock, stock.loadRes(str(found)), "bbox")
    evaluation.params.catIds = [c["id"] for c in chosen]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    numbers = detection.average_precision(results, truth)
    assert [numbers[n] for n in detection.COCO_NUMBERS] == pytest.approx(list(evaluation.stats), abs=1e-12)
    assert results.dropped["not_scored"] > 0
    assert results.dropped["unknown_category"] == 0


def test_from_text_to_ap() -> None:
    truth = detection.make_truth(annotations())
    results = detection.from_replies(
        [
            # The cat's box, 20..120 of 200 and 10..60 of 100, in thousandths.
            prediction(10, 1, reply(([100, 100, 600, 600], 0.9))),
            # Right box of the hot dog below a wrong one that is more confident.
            prediction(11, 2, reply(([0, 600, 200, 950], 0.8), ([0, 0, 250, 500], 0.5))),
            prediction(10, 7, "<think>none</think><answer>No Objects</answer>"),
            prediction(11, 7, "I see nothing of this kind"),
        ],
        truth,
    )
    numbers = detection.evaluate(results, truth)
    assert numbers["per_category"]["cat"] == {
        "AP": pytest.approx(1.0),
        "AP50": pytest.approx(1.0),
        "AR100": pytest.approx(1.0),
        "objects": 1,
        "boxes": 1,
    }
    # One false positive before the hit: precision 1/2 at every recall. The crowd asks for nothing.
    assert numbers["per_category"]["hot dog"]["AP"] == pytest.approx(0.5)
    assert numbers["AP"] == pytest.approx(0.75)
    assert numbers["per_category"]["hair drier"]["AP"] == -1
    # 1 for the cat, 1/2 for the hot dog, 1 for the right abstention, 0 for the unreadable reply.
    assert numbers["mean_iou"] == pytest.approx(2.5 / 4)
    assert numbers["mean_iou_present"] == pytest.approx(0.75)
    assert numbers["unreadable"] == {"no_answer": 1}
    # With one confidence for all the order written decides, and the wrong box was written first.
    assert numbers["constant_confidence"]["AP"] == pytest.approx(0.75)


def test_every_space_gives_the_same_box() -> None:
    truth = detection.make_truth(annotations())
    spaces = {
        "norm1000": [100, 100, 600, 600],
        "abs_resized": [10, 20, 60, 120],  # the model saw 100 x 200 pixels
        "pixels": [20, 10, 120, 60],
    }
    for space, corners in spaces.items():
        asked = prediction(10, 1, reply((corners, 0.9)), space=space, model_size=(100, 200))
        results = detection.from_replies([asked], truth)
        assert results.boxes[0]["bbox"] == pytest.approx([20, 10, 100, 50]), space


def test_the_size_of_the_annotations_serves_where_a_prediction_has_none() -> None:
    truth = detection.make_truth(annotations())
    asked = prediction(10, 1, reply(([100, 100, 600, 600], 0.9)), image_size=None)
    assert detection.from_replies([asked], truth).boxes[0]["bbox"] == pytest.approx([20, 10, 100, 50])
    asked = prediction(10, 1, reply(([1, 1, 6, 6], 0.9)), space="abs_resized")
    with pytest.raises(UserError, match=r"prediction '10/1'.*model_size"):
        detection.from_replies([asked], truth)


@pytest.mark.parametrize("space", ["norm1000", "abs_resized"])
def test_a_copy_of_the_picture_in_another_size_scores_the_same(space: str) -> None:
    truth = detection.make_truth(annotations())
    corners = {"norm1000": [100, 100, 600, 600], "abs_resized": [10, 20, 60, 120]}[space]
    sizes = {"space": space, "model_size": (100, 200)}
    for size in ((200, 100), (100, 50), (667, 334)):
        asked = prediction(10, 1, reply((corners, 0.9)), image_size=size, **sizes)
        assert detection.from_replies([asked], truth).boxes[0]["bbox"] == pytest.approx([20, 10, 100, 50])
    turned = prediction(10, 1, reply((corners, 0.9)), image_size=(100, 200), **sizes)
    with pytest.raises(UserError, match=r"'10/1': its picture had 100 x 200 pixels.* for 200 x 100"):
        detection.from_replies([turned], truth)


def test_boxes_dropped_or_mended_in_replies_are_counted() -> None:
    truth = detection.make_truth(annotations())
    text = "<answer>[{'Position': [0, 0, 9, 9]}, {'Position': [9, 9, 0, 0], 'Confidence': 0.5}]</answer>"
    results = detection.from_replies([prediction("10", "1", text)], truth)
    assert [b["score"] for b in results.boxes] == [detection.MISSING_SCORE]
    assert results.dropped == {"missing_score": 1, "bad_bbox": 1}
    assert detection.from_replies([prediction("10", "1", text)], truth, 0.25).boxes[0]["score"] == 0.25


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"score": "0.5"}, None),
        ({"score": "high"}, "bad_score"),
        ({"score": float("nan")}, "bad_score"),
        ({"score": True}, "bad_score"),
        ({"score": None}, "missing_score"),
        ({"bbox": [0, 0, 5]}, "bad_bbox"),
        ({"bbox": [0, 0, -5, 5]}, "bad_bbox"),
        ({"bbox": [0, 0, float("inf"), 5]}, "bad_bbox"),
        ({"bbox": None}, "bad_bbox"),
        ({"image_id": 77}, "unknown_image"),
        ({"image_id": "10"}, None),
        ({"category_id": 77}, "unknown_category"),
        ({"category_id": "1"}, None),
    ],
)
def test_odd_entries_of_a_results_file(entry: dict[str, Any], what: str | None) -> None:
    truth = detection.make_truth(annotations())
    good = {"image_id": 10, "category_id": 1, "bbox": [20, 10, 100, 50], "score": 0.9}
    results = detection.from_coco_results([good, good | entry], truth)
    assert results.dropped == ({what: 1} if what else {})
    assert len(results.boxes) == (2 if what in (None, "missing_score") else 1)
    # Annotation 0 is matched, which pycocotools never does.
    assert detection.average_precision(results, truth)["per_category"]["cat"]["AP50"] == pytest.approx(1.0)


def test_no_boxes_at_all() -> None:
    truth = detection.make_truth(annotations())
    numbers = detection.evaluate(detection.from_coco_results([], truth), truth)
    assert numbers["AP"] == 0
    assert numbers["mean_iou"] == 0
    nothing = detection.make_truth(annotations(annotations=[]))
    assert detection.evaluate(detection.from_coco_results([], nothing), nothing)["AP"] == -1


def test_a_results_file_of_other_annotations_is_refused() -> None:
    truth = detection.make_truth(annotations())
    entry = {"image_id": 77, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 1}
    with pytest.raises(UserError, match="none of the 1 predictions belongs"):
        detection.from_coco_results([entry], truth)
    with pytest.raises(UserError, match="entry 0 has no 'category_id'"):
        detection.from_coco_results([{"image_id": 10, "bbox": [0, 0, 5, 5]}], truth)
    with pytest.raises(UserError, match="entry 0 has no 'bbox'"):
        detection.from_coco_results([{"image_id": 10}], truth)
    with pytest.raises(UserError, match="its meta has no 'image_id'"):
        detection.from_replies([Prediction("a", "", "norm1000")], truth)


def test_truth_is_made_fit() -> None:
    with pytest.raises(UserError, match="two images with the same id"):
        detection.make_truth(annotations(images=[{"id": 10}, {"id": "10"}]))
    with pytest.raises(UserError, match="'cat': its id 'x' is no whole number"):
        detection.make_truth(annotations(categories=[{"id": "x", "name": "cat"}]))
    with pytest.raises(UserError, match="'cat': its id 1.5 is no whole number"):
        detection.make_truth(annotations(categories=[{"id": 1.5, "name": "cat"}]))
    with pytest.raises(UserError, match="two categories with the same id"):
        detection.make_truth(annotations(categories=[{"id": 1, "name": "cat"}, {"id": "1", "name": "dog"}]))
    truth = detection.make_truth(annotations(), max_images=1)
    assert [a["id"] for a in truth.annotations] == [1]
    assert truth.annotations[0]["area"] == 5000


@pytest.mark.parametrize(
    ("changes", "area", "crowd"),
    [
        ({"area": None}, 5000, 0),
        ({"area": "400"}, 400, 0),
        ({"iscrowd": None}, 5000, 0),
        ({"iscrowd": "0"}, 5000, 0),
        ({"iscrowd": True}, 5000, 1),
        ({"category_id": 1.0}, 5000, 0),
        ({"image_id": "10"}, 5000, 0),
    ],
)
def test_odd_annotations_that_mean_something(changes: dict[str, Any], area: float, crowd: int) -> None:
    entry = annotations()["annotations"][0] | changes
    truth = detection.make_truth(annotations(annotations=[entry]))
    assert [(a["area"], a["iscrowd"]) for a in truth.annotations] == [(area, crowd)]
    asked = prediction(10, 1, reply(([100, 100, 600, 600], 0.9)))
    found = detection.evaluate(detection.from_replies([asked], truth), truth)
    assert found["AP"] == (-1 if crowd else pytest.approx(1))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"area": float("nan")}, "area nan is no number"),
        ({"iscrowd": "maybe"}, "iscrowd 'maybe' is neither 0 nor 1"),
        ({"bbox": [1, 2, -3, 4]}, r"bbox \[1, 2, -3, 4\] is not four numbers"),
    ],
)
def test_odd_annotations_that_mean_nothing_are_named(changes: dict[str, Any], what: str) -> None:
    entry = annotations()["annotations"][0] | changes
    with pytest.raises(UserError, match=f"annotation 0 of image 10: {what}"):
        detection.make_truth(annotations(annotations=[entry]))


@pytest.mark.parametrize("identity", [7, "000000000139", "--5", "a/b", 3.0])
def test_results_for_other_tools_keep_the_image_ids_of_the_file(identity: Any) -> None:
    only = annotations(images=[{"id": identity, "width": 200, "height": 100}], annotations=[])
    truth = detection.make_truth(only)
    results = detection.from_replies([prediction(identity, 1, reply(([0, 0, 500, 500], 0.9)))], truth)
    entries = detection.to_coco_results(results, truth)
    assert [e["image_id"] for e in entries] == [identity]
    assert detection.from_coco_results(entries, truth).boxes == results.boxes


# ------------------------------------------------------------------------------------------------ program


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the scorer as a user does."""
    program = root / "coco_evaluation/coco_evaluation.py"
    return subprocess.run(
        [sys.executable, str(program), *arguments], capture_output=True, text=True, timeout=300
    )


def test_the_scorer_from_stored_replies(folder: Path, root: Path) -> None:
    lines = [
        prediction(10, 1, reply(([100, 100, 600, 600], 0.9))),
        prediction(11, 2, reply(([0, 0, 250, 500], 0.5))),
    ]
    (folder / "p.jsonl").write_text("".join(json.dumps(p.to_json()) + "\n" for p in lines))
    meta = {"categories": ["cat", "hot dog"], "max_images": None}
    meta["skipped_images"] = [{"id": "12/1", "reason": "broken"}]
    (folder / "p.meta.json").write_text(json.dumps(meta))
    done = run(
        root,
        *("--annotations", str(folder / "gt.json"), "--predictions", str(folder / "p.jsonl")),
        *("--output", str(folder / "s.json"), "--coco_results", str(folder / "r.json")),
    )
    assert done.returncode == 0, done.stderr
    assert "hair drier" not in done.stdout  # only what was asked is scored
    numbers = json.loads((folder / "s.json").read_text())
    assert numbers["AP"] == pytest.approx(1.0)
    assert numbers["protocol"]["categories"] == ["cat", "hot dog"]
    assert numbers["skipped"] == 1 and "1 questions left out" in done.stdout
    # The same boxes through the other door.
    again = suite.score(
        suite.ScoreSettings(
            annotations=str(folder / "gt.json"),
            predictions=str(folder / "r.json"),
            categories=["cat", "hot dog"],
        )
    )
    assert again["AP"] == numbers["AP"]
    assert json.loads((folder / "r.json").read_text())[0]["image_id"] == 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no such file"),
        (["--predictions", "broken.jsonl"], "line 2: not a prediction"),
        (["--predictions", "broken.json"], "not a JSON file"),
        (["--predictions", "empty.json", "--categories", "unicorn"], "'unicorn' is no category"),
    ],
)
def test_the_scorer_refuses_in_one_sentence(
    arguments: list[str], sentence: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("broken.jsonl").write_text(json.dumps(prediction(10, 1, "").to_json()) + '\n{"id": 1}\n')
    Path("broken.json").write_text("[{")
    Path("empty.json").write_text("[]")
    flags = dict(zip(arguments[::2], arguments[1::2], strict=True))
    settings = suite.ScoreSettings(
        annotations="gt.json",
        predictions=flags.get("--predictions", "none.jsonl"),
        categories=[flags["--categories"]] if "--categories" in flags else None,
    )
    with pytest.raises(UserError, match=sentence):
        suite.score(settings)


def test_a_refusal_of_the_program_is_one_line_and_exit_code_2(root: Path, tmp_path: Path) -> None:
    done = run(root, "--annotations", str(tmp_path / "none.json"))
    assert done.returncode == 2
    assert done.stderr == f"error: annotations {tmp_path / 'none.json'}: no such file\n"


def test_scoring_loads_no_torch() -> None:
    code = "import sys, virft.evaluate.coco; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_predictions_are_read_back_as_written(tmp_path: Path) -> None:
    wrote = prediction(10, 1, "a\nb \u2028 é", model_size=(28, 56), tokens=3, truncated=True)
    (tmp_path / "p.jsonl").write_text(json.dumps(wrote.to_json()) + "\n\n")
    assert load_predictions(tmp_path / "p.jsonl") == [wrote]
