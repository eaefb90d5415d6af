"""Detection rows from annotations: rules, choices, sources, outputs, and every refusal."""

from __future__ import annotations

import errno
import gzip
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from virft import parsing, prompts
from virft.boxes import convert, iou, resized
from virft.data.builders.choice import rank, shots
from virft.data.builders.detection import DetectionSettings, build
from virft.data.builders.ordered import ordered_map
from virft.data.builders.output import Target
from virft.data.builders.rules import BoxRules, RawBox, judge
from virft.data.builders.workplace import naming_disk_faults, working_folder
from virft.data.coco import CATEGORY_PRESETS
from virft.data.json_stream import elements
from virft.data.records import read_json, records
from virft.data.training import load_rows
from virft.errors import UserError
from virft.rewards import TASK_REWARDS, check_solutions, load_rewards


def program(root: Path, name: str) -> ModuleType:
    """A program of dataset/ as a module."""
    spec = importlib.util.spec_from_file_location(f"dataset_{name}", root / "dataset" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def coco(boxes: list[tuple], images: int = 3, size: tuple[int, int] = (200, 100)) -> dict[str, Any]:
    """A COCO file: boxes are (image id, category id, x, y, width, height[, crowd])."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": size[0], "height": size[1]}
            for i in range(1, images + 1)
        ],
        "annotations": [
            {"id": n, "image_id": b[0], "category_id": b[1], "bbox": list(b[2:6]), "iscrowd": int(len(b) > 6)}
            for n, b in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "hot dog"}],
    }


Make = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a COCO file and its images, build rows, read them."""

    def made(content: Mapping[str, Any], name: str = "rows.jsonl", **settings: Any) -> list[dict[str, Any]]:
        source = tmp_path / "source.json"
        source.write_text(json.dumps(content))
        for image in content["images"]:
            path = tmp_path / image["file_name"]
            if not path.exists():
                size = min(image.get("width", 200), 1000), min(image.get("height", 100), 1000)
                Image.new("RGB", size).save(path)
        target = Target.of(tmp_path / "out" / name)
        made.counts = build(DetectionSettings(source, **settings), target, overwrite=True)
        return [json.loads(line) for line in target.path.read_text().splitlines()]

    return made


def boxes_of(row: Mapping[str, Any]) -> list[tuple[float, ...]]:
    return [tuple(found.box) for found in parsing.parse_detections(row["solution"]).value]


def test_one_row_for_each_image_and_category(make: Make) -> None:
    rows = make(
        coco([(1, 1, 20, 10, 100, 50), (1, 2, 0, 0, 200, 100), (2, 1, 0, 0, 50, 50), (1, 1, 0, 50, 40, 50)])
    )
    assert [(row["image_id"], row["category"]) for row in rows] == [("1", "cat"), ("1", "dog"), ("2", "cat")]
    assert rows[0] == {
        "image": "../1.png",
        "problem": prompts.detection("cat"),
        "solution": "<answer>[{'Position': [100, 100, 600, 600], 'Confidence': 1}, "
        "{'Position': [0, 500, 200, 1000], 'Confidence': 1}]</answer>",
        "task": "detection",
        "category": "cat",
        "image_id": "1",
    }


def test_rows_train_and_their_solutions_are_worth_the_maximum(make: Make, tmp_path: Path) -> None:
    # A box twice in the source, and two that fall together in thousandths, would cap the reward if kept.
    make(
        coco(
            [
                (1, 1, 20, 10, 100, 50),
                (1, 1, 20, 10, 100, 50),
                (1, 1, 20.01, 10, 100, 50),
                (2, 2, 3, 4, 50, 60),
            ]
        ),
        negatives=0.4,
    )
    rows = load_rows(str(tmp_path / "out" / "rows.jsonl"))
    assert len(rows) == 3
    assert sum(prompts.NO_OBJECTS in solution for solution in rows["solution"]) == 1
    check_solutions(load_rewards(TASK_REWARDS["detection"]), rows)


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        (BoxRules(), {"2": 1}),
        (BoxRules(crowd="box"), {"1": 1, "2": 1}),
        (BoxRules(tiny="box"), {"2": 1, "3": 1}),
        (BoxRules(crowd="box", tiny="box"), {"1": 1, "2": 1, "3": 1}),
        (BoxRules(min_side=0), {"2": 1, "3": 2}),
    ],
)
def test_a_crowd_or_a_tiny_box_takes_out_its_pair_or_itself(
    make: Make, rules: BoxRules, left: Mapping[str, int]
) -> None:
    box = (20, 10, 100, 50)
    content = coco(
        [(1, 1, *box), (1, 1, 0, 0, 150, 90, "crowd"), (2, 1, *box), (3, 1, *box), (3, 1, 5, 5, 1.9, 50)]
    )
    rows = make(content, rules=rules)
    assert {row["image_id"]: len(boxes_of(row)) for row in rows} == left


def test_pairs_left_out_are_no_negatives_either(make: Make) -> None:
    # Cat on image 1 is a crowd: not a row, and "No Objects" would be a lie.
    content = coco([(1, 1, 0, 0, 150, 90, "crowd"), (1, 2, 20, 10, 100, 50)], images=1)
    rows = make(content, negatives=0.5)
    assert [(row["category"], prompts.NO_OBJECTS in row["solution"]) for row in rows] == [
        ("dog", False),
        ("hot dog", True),
    ]


def test_a_pair_with_too_many_boxes_is_left_out(make: Make) -> None:
    crowd = [(1, 1, 10 * i, 0, 9, 90) for i in range(4)]
    assert [
        row["image_id"] for row in make(coco([*crowd, (2, 1, 0, 0, 9, 90)]), rules=BoxRules(max_boxes=3))
    ] == ["2"]
    assert make.counts["pairs_left_out"] == {"too_many": 1}


def test_a_box_a_little_over_the_edge_is_cut(make: Make) -> None:
    row = make(coco([(1, 1, -0.9, 50, 201.5, 50.5)]))[0]
    assert boxes_of(row) == [(0, 500, 1000, 1000)]


@pytest.mark.parametrize(
    ("box", "why"),
    [
        ((20, 10, -5, 50), "inverted: width -5, height 50"),
        ((20, 10, 300, 50), "outside its image: x 20, y 10, width 300, height 50 on 200 x 100 pixels"),
        ((-80, 10, 100, 50), "outside its image"),
        ((float("nan"), 10, 100, 50), "not four finite numbers"),
        ((20, 10, float("inf"), 50), "not four finite numbers"),
    ],
)
def test_wrong_boxes_stop_the_build_or_are_left_out(make: Make, tmp_path: Path, box: tuple, why: str) -> None:
    content = coco([(1, 1, 20, 10, 100, 50), (2, 1, *box), (2, 1, 0, 0, 100, 50)])
    with pytest.raises(UserError) as raised:
        make(content)
    assert why in str(raised.value)
    assert "annotation 2" in str(raised.value)
    assert list((tmp_path / "out").iterdir()) == []
    assert [row["image_id"] for row in make(content, leave_out_wrong=True)] == ["1"]
    assert make.counts["pairs_left_out"] == {"wrong_box": 1}


def test_only_some_wrong_boxes_are_named(make: Make) -> None:
    with pytest.raises(UserError, match=r"annotation 5 is inverted.*; and 3 more: mend them") as raised:
        make(coco([(1, 1, 0, 0, -1, 9)] * 8))
    assert "annotation 6" not in str(raised.value)


BOX = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "no images: is it a COCO"),
        ({"categories": []}, "no categories: is it a COCO"),
        ({"images": [{"id": 1, "file_name": "1.png"}] * 2}, "two image entries have the same id: 1"),
        ({"categories": [{"id": 1, "name": "a"}] * 2}, "two category entries have the same id: 1"),
        (
            {"images": [{"id": 9, "file_name": "9.png"}]},
            "annotation 1 is of image 1, which is not among the images",
        ),
        (
            {"categories": [{"id": 9, "name": "x"}]},
            "annotation 1 is of category 1, which is not among the categories",
        ),
        ({"annotations": [{"id": 7, "image_id": 1, "category_id": 1}]}, "annotations entry 7: no 'bbox'"),
        (
            {"annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}]},
            "annotations entry 7: a box is four numbers, got [1, 2, 3]",
        ),
        ({"annotations": []}, "no rows: no image shows these categories"),
        ({"annotations": [{**BOX, "bbox": "1234"}]}, "a box is four numbers, got 1234"),
        ({"annotations": [{**BOX, "bbox": [10**400, 1, 2, 3]}]}, "a box is four numbers, got [1000"),
        ({"annotations": [{**BOX, "bbox": [True, 1, 2, 3]}]}, "a box is four numbers, got [True"),
        ({"annotations": [{**BOX, "iscrowd": "yes"}]}, "entry 7: its iscrowd must be 0 or 1, got yes"),
        ({"annotations": [{**BOX, "image_id": None}]}, "its image_id must be a whole number or text"),
        ({"images": [{"id": None, "file_name": "1.png"}]}, "its id must be a whole number or text, got None"),
        ({"images": [{"id": 1, "file_name": "1.png", "height": 1e300}]}, "width and height must be numbers"),
        ({"categories": [{"id": 1, "name": "\ud800"}]}, "'\\ud800' is not UTF-8 text"),
        ({"categories": [{"id": 1, "name": "a", "synonyms": "b"}]}, "its synonyms must be a list of names"),
    ],
)
def test_files_that_do_not_fit_together_are_named(
    make: Make, change: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        make({**coco([(1, 1, 20, 10, 100, 50)]), **change})
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"file_name": None}, "its 'file_name' must be a path, got None"),
        ({"file_name": "a\0.png"}, "no such image|embedded null byte"),
        ({"file_name": "a" * 5000}, "File name too long"),
        ({"coco_url": 5, "neg_category_ids": []}, "its 'coco_url' must be a path, got 5"),
    ],
)
@pytest.mark.parametrize("sized", [True, False])
def test_paths_that_are_none_are_named(
    tmp_path: Path, image: Mapping[str, Any], message: str, sized: bool
) -> None:
    content = coco([(1, 1, 20, 10, 100, 50)], images=1)
    content["images"][0].update(image, **({} if sized else {"width": None}))
    (tmp_path / "source.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        build(DetectionSettings(tmp_path / "source.json"), Target.of(tmp_path / "out" / "rows.jsonl"))
    assert list((tmp_path / "out").iterdir()) == []


def test_whole_numbers_written_as_floats_are_ids(make: Make) -> None:
    content = coco([(1, 1, 20, 10, 100, 50)])
    content["annotations"][0].update(image_id=1.0, category_id=1.0)
    assert len(make(content)) == 1


def test_an_unknown_category_names_the_nearest(make: Make) -> None:
    with pytest.raises(UserError, match="'cats' is no category.*did you mean 'cat'"):
        make(coco([(1, 1, 20, 10, 100, 50)]), categories=("cats",))


def test_a_missing_image_is_named_and_nothing_is_left(make: Make, tmp_path: Path) -> None:
    content = coco([(1, 1, 20, 10, 100, 50)])
    with pytest.raises(UserError, match=r"elsewhere/1\.png: no such image; is --image_folder right"):
        make(content, image_folder=tmp_path / "elsewhere")
    assert list((tmp_path / "out").iterdir()) == []


def test_sizes_are_read_from_images_where_the_file_lacks_them(make: Make) -> None:
    content = coco([(1, 1, 20, 10, 100, 50)])
    for image in content["images"]:
        del image["width"], image["height"]
    assert boxes_of(make(content)[0]) == [(100, 100, 600, 600)]


def test_annotations_may_come_before_images_and_ids_be_of_another_type(make: Make) -> None:
    content = coco([(1, 1, 20, 10, 100, 50)])
    content["annotations"][0]["image_id"] = "1"
    order = ("annotations", "categories", "images")
    assert make({key: content[key] for key in order})[0]["image_id"] == "1"


# Choices


def many(images: int = 40) -> dict:
    """Cats on every image, dogs on every second, hot dogs on every fourth."""
    boxes = [(i, 1, 20, 10, 100, 50) for i in range(1, images + 1)]
    boxes += [(i, 2, 0, 0, 50, 50) for i in range(2, images + 1, 2)]
    boxes += [(i, 3, 0, 0, 90, 50) for i in range(4, images + 1, 4)]
    return coco(boxes, images=images)


def pairs(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(row["image_id"], row["category"]) for row in rows}


def test_shots_are_images_of_each_category_and_fewer_are_among_more(make: Make) -> None:
    made = {k: make(many(), shots=k, seed=3) for k in (1, 2, 4)}
    for count, rows in made.items():
        assert {n: sum(row["category"] == n for row in rows) for n in ("cat", "dog", "hot dog")} == {
            "cat": count,
            "dog": count,
            "hot dog": count,
        }
    assert pairs(made[1]) < pairs(made[2]) < pairs(made[4])
    assert pairs(make(many(), shots=4, seed=4)) != pairs(made[4])
    assert pairs(make(many(), shots=4, seed=3, categories=("dog",))) == {
        p for p in pairs(made[4]) if p[1] == "dog"
    }


def test_a_choice_does_not_depend_on_the_order_of_annotations(make: Make) -> None:
    content = many()
    first = pairs(make(content, shots=4, seed=3))
    content["annotations"].reverse()
    content["images"].reverse()
    assert pairs(make(content, shots=4, seed=3)) == first


def test_categories_short_of_shots_are_counted(make: Make) -> None:
    make(many(8), shots=4)
    assert make.counts["categories_short_of_shots"] == {"hot dog": 2}
    make(many(8), shots=8, categories=("dog", "cat"))
    assert make.counts["categories_short_of_shots"] == {"dog": 4}


@pytest.mark.parametrize(("choice", "rows"), [({}, 70), ({"rows": 20}, 20)])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_negatives_are_a_share_of_the_rows_and_true(
    make: Make, choice: Mapping, rows: int, share: float
) -> None:
    made = make(many(), negatives=share, seed=1, **choice)
    negative = [row for row in made if prompts.NO_OBJECTS in row["solution"]]
    shown = pairs(make(many()))
    expected = rows if choice.get("rows") else round(rows / (1 - share))
    # 40 cats on 40 images: the absent pairs are 20 dogs and 30 hot dogs, fewer than half of all asks for.
    assert len(made) == min(expected, 120)
    assert len(negative) == min(round(expected * share), 50)
    assert not pairs(negative) & shown
    assert len(pairs(made)) == len(made)


def test_negatives_of_shots_use_no_further_image(make: Make) -> None:
    positive = make(many(), shots=2, seed=1)
    made = make(many(), shots=2, seed=1, negatives=0.3)
    assert {row["image_id"] for row in made} == {row["image_id"] for row in positive}
    assert len(made) == 9  # 6 rows with boxes and 3 without: 0.3 of 9, rounded


def test_lvis_negatives_are_verified_and_unfinished_categories_left_out(make: Make, tmp_path: Path) -> None:
    content = coco([(1, 1, 20, 10, 100, 50), (1, 2, 20, 10, 100, 50), (2, 1, 20, 10, 100, 50)])
    for image in content["images"]:
        image |= {"coco_url": f"http://host/val2017/{image['file_name']}", "neg_category_ids": []}
        image["not_exhaustive_category_ids"] = [2] if image["id"] == 1 else []
        image["file_name"] = f"val2017/{image['file_name']}"
    content["images"][2]["neg_category_ids"] = [3]
    content["categories"][2]["name"] = "hot_dog"
    (tmp_path / "val2017").mkdir()
    rows = make(content, negatives=0.5)
    assert pairs(rows) == {("1", "cat"), ("2", "cat"), ("3", "hot_dog")}
    assert rows[2]["problem"] == prompts.detection("hot dog")
    assert make.counts["pairs_left_out"] == {"incomplete": 1}
    assert make.counts["negatives_wanted"] == 2


def test_base_and_novel_split_the_categories(make: Make) -> None:
    content = coco([(1, c, 20, 10, 100, 50) for c in (1, 2, 3)])
    with pytest.raises(UserError, match="'mouse' is no category"):
        make(content, categories=("novel15",))
    # Of cat, dog and hot dog only the dog is a base category.
    assert [row["category"] for row in make(content, categories=("base65",))] == ["dog"]
    content["categories"] += [
        {"id": 10 + n, "name": name} for n, name in enumerate(CATEGORY_PRESETS["novel15"])
    ]
    content["categories"] = [c for c in content["categories"] if c["id"] not in (1, 3)]
    novel = {c["name"]: c["id"] for c in content["categories"]}
    for annotation, name in zip(content["annotations"], ("cat", "dog", "hot dog"), strict=True):
        annotation["category_id"] = novel[name]
    made = make(content, categories=("novel15",))
    assert {row["category"] for row in made} == {"cat", "hot dog"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 2, "rows": 3}, "only one of them"),
        ({"shots": -1}, "must not be negative"),
        ({"negatives": 1.0}, "less than 1"),
        ({"space": "pixels"}, "--coordinates pixels: one of"),
        ({"space": "abs_resized"}, "pass the training's --min_pixels"),
        ({"space": "abs_resized", "min_pixels": 9, "max_pixels": 3}, "not above --max_pixels"),
        ({"kind": "kitti"}, "--kind kitti: one of"),
        ({"min_pixels": 3136}, "are of --coordinates abs_resized, not of norm1000"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DetectionSettings(Path("x.json"), **settings)


def test_a_folder_is_no_annotation_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder, which --kind coco is not: .* --kind yolo or voc"):
        DetectionSettings(tmp_path)


def test_rows_too_few_for_their_negatives_are_refused(make: Make) -> None:
    with pytest.raises(UserError, match=r"--rows 1 with --negatives 0\.9 leaves no row with boxes"):
        make(coco([(1, 1, 20, 10, 100, 50)]), rows=1, negatives=0.9)


def test_boxes_in_pixels_of_the_resized_image(make: Make, tmp_path: Path) -> None:
    limits = {"min_pixels": 3136, "max_pixels": 12544}
    row = make(coco([(1, 1, 20, 10, 100, 50)]), space="abs_resized", **limits)[0]
    width, height = resized((200, 100), **limits)
    assert row["coordinates"] == "abs_resized"
    assert row["problem"] == prompts.detection("cat", "abs_resized")
    assert boxes_of(row) == [
        (round(0.1 * width), round(0.1 * height), round(0.6 * width), round(0.6 * height))
    ]


# Sources


def test_the_shared_coco_file(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "coco" / "instances_val2014_100.json"
    content = json.loads(source.read_text())
    for image in content["images"]:
        (tmp_path / image["file_name"]).touch()
    target = Target.of(tmp_path / "rows.jsonl")
    counts = build(
        DetectionSettings(source, image_folder=tmp_path, rules=BoxRules("box", "box", 0, 0)), target
    )
    assert counts["annotations"] == 839
    rows = [json.loads(line) for line in target.path.read_text().splitlines()]
    sizes = {str(image["id"]): (image["width"], image["height"]) for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    truths: dict[tuple[str, str], list] = {}
    for annotation in content["annotations"]:
        if not annotation["iscrowd"]:
            key = (str(annotation["image_id"]), names[annotation["category_id"]])
            truths.setdefault(key, []).append(convert(annotation["bbox"], "xywh", "norm1000", sizes[key[0]]))
    assert pairs(rows) <= set(truths)
    for row in rows:
        expected = truths[row["image_id"], row["category"]]
        for box in boxes_of(row):
            assert max(iou(box, truth) for truth in expected) > 0.6  # rounding of the smallest boxes
    written = sum(len(boxes_of(row)) for row in rows)
    assert 820 <= written <= 830  # 839 less 9 crowds and what is under two thousandths


def yolo_set(folder: Path, names: Any = ("cat", "dog")) -> Path:
    (folder / "images" / "train").mkdir(parents=True)
    (folder / "labels" / "train").mkdir(parents=True)
    for name, size in (("a.jpg", (200, 100)), ("b.PNG", (100, 100)), ("empty.jpg", (50, 50))):
        Image.new("RGB", size).save(folder / "images" / "train" / name)
    (folder / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n\n0 0.1 0.1 0.5 0.1 0.5 0.6\n")
    (folder / "labels" / "train" / "b.txt").write_text("0 0.5 0.5 1 1\n")
    (folder / "data.yaml").write_text(json.dumps({"names": names, "train": "images/train"}))
    return folder


def built(source: Path, out: Path, **settings: Any) -> list[dict[str, Any]]:
    target = Target.of(out)
    build(DetectionSettings(source, **settings), target, overwrite=True)
    return [json.loads(line) for line in target.path.read_text().splitlines()]


@pytest.mark.parametrize("names", [["cat", "dog"], {"0": "cat", "1": "dog"}])
def test_yolo(tmp_path: Path, names: Any) -> None:
    rows = built(yolo_set(tmp_path / "set", names), tmp_path / "rows.jsonl", kind="yolo")
    assert [(Path(row["image"]).name, row["category"], boxes_of(row)) for row in rows] == [
        ("a.jpg", "cat", [(100, 100, 500, 600)]),
        ("a.jpg", "dog", [(250, 250, 750, 750)]),
        ("b.PNG", "cat", [(0, 0, 1000, 1000)]),
    ]
    assert (tmp_path / rows[0]["image"]).is_file()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("labels/train/a.txt", "0 0.5 0.5 x 1", "a.txt line 1: could not convert"),
        ("labels/train/a.txt", "0 0.5 0.5\n", "a.txt line 1: a class and 4 numbers, or a polygon, got 2"),
        ("labels/train/a.txt", "7 0.5 0.5 1 1\n", "a.txt line 1 is of category 7, which is not among"),
        ("labels/train/a.txt", "0 0.5 0.5 1.5 1\n", "a.txt line 1 is outside its image"),
        ("labels/train/zebra.txt", "0 0.5 0.5 1 1", "zebra.txt: no image of that name"),
        ("data.yaml", "train: images/train", "'names' must list the class names"),
        ("data.yaml", '{"names": ["a"]}', "'train' must name a folder of images"),
        ("data.yaml", '{"names": ["a"], "train": "nowhere"}', "nowhere is not a folder"),
        ("images/train/a.jpg", "no image", "a.jpg: not a readable image"),
    ],
)
def test_yolo_faults_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = yolo_set(tmp_path / "set")
    (folder / file).write_text(text)
    with pytest.raises(UserError) as raised:
        built(folder, tmp_path / "rows.jsonl", kind="yolo")
    assert message in str(raised.value)


@pytest.mark.parametrize("change", ["labels/train/b.txt", "images/train/new.jpg", "data.yaml"])
@pytest.mark.parametrize("given", ["set", "set/data.yaml"])
def test_a_changed_yolo_set_is_not_taken_for_the_same(tmp_path: Path, given: str, change: str) -> None:
    folder = yolo_set(tmp_path / "set")
    target = Target.of(tmp_path / "rows.jsonl")
    build(DetectionSettings(tmp_path / given, kind="yolo"), target)
    assert build(DetectionSettings(tmp_path / given, kind="yolo"), target) is None
    if change.endswith("jpg"):
        Image.new("RGB", (20, 20)).save(folder / change)
    else:
        (folder / change).write_text((folder / change).read_text() + "\n")
    with pytest.raises(UserError, match="was not built so"):
        build(DetectionSettings(tmp_path / given, kind="yolo"), target)


@pytest.mark.parametrize("image_folder", [None, "images/train"])
def test_yolo_and_voc_sets_by_relative_paths(
    tmp_path: Path, image_folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    yolo_set(tmp_path / "some" / "set")
    voc_set(tmp_path / "some" / "voc", {"one": [("cat", 0, 1, 1, 100, 50)]})
    monkeypatch.chdir(tmp_path)
    folder = image_folder and Path("some/set") / image_folder
    rows = built(Path("some/set"), Path("o/rows.jsonl"), kind="yolo", image_folder=folder)
    assert all((tmp_path / "o" / row["image"]).is_file() for row in rows)
    folder = image_folder and Path("some/voc/JPEGImages")
    rows = built(Path("some/voc"), Path("o/voc.jsonl"), kind="voc", image_folder=folder)
    assert all((tmp_path / "o" / row["image"]).is_file() for row in rows)


def test_yolo_folders_may_be_links(tmp_path: Path) -> None:
    folder = yolo_set(tmp_path / "set")
    (folder / "images" / "train").rename(tmp_path / "pictures")
    (folder / "images" / "train").symlink_to(tmp_path / "pictures")
    assert len(built(folder, tmp_path / "rows.jsonl", kind="yolo")) == 3


VOC_OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def voc_set(folder: Path, objects: Mapping[str, list[tuple]]) -> Path:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for name, found in objects.items():
        Image.new("RGB", (200, 100)).save(folder / "JPEGImages" / f"{name}.jpg")
        inner = "".join(VOC_OBJECT.format(*values) for values in found)
        size = "<size><width>200</width><height>100</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.jpg</filename>{size}{inner}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("one\n")
    return folder


def test_voc(tmp_path: Path) -> None:
    # xmin 1 .. xmax 100 includes pixels 1 to 100: half of the width from its edge.
    objects = {
        "one": [("cat", 0, 1, 1, 100, 50), ("dog", 1, 1, 1, 100, 50)],
        "two": [("dog", 0, 101, 51, 200, 100)],
    }
    folder = voc_set(tmp_path / "set", objects)
    rows = built(folder, tmp_path / "rows.jsonl", kind="voc")
    assert [(row["image_id"], row["category"], boxes_of(row)) for row in rows] == [
        ("one", "cat", [(0, 0, 500, 500)]),
        ("two", "dog", [(500, 500, 1000, 1000)]),
    ]
    assert [row["image_id"] for row in built(folder, tmp_path / "rows.jsonl", kind="voc", split="train")] == [
        "one"
    ]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Annotations/one.xml", "<annotation>", "one.xml: not a VOC annotation"),
        ("Annotations/one.xml", "<html/>", "one.xml: not a VOC annotation"),
        ("Annotations/one.xml", VOC_OBJECT.format("", 0, 1, 1, 2, 2), "one.xml: not a VOC annotation"),
        ("ImageSets/Main/train.txt", "absent 1", "absent.xml: no such file"),
    ],
)
def test_voc_faults_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = voc_set(tmp_path / "set", {"one": [("cat", 0, 1, 1, 100, 50)]})
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=message):
        built(folder, tmp_path / "rows.jsonl", kind="voc", split="train")


@pytest.mark.parametrize(
    ("name", "text", "settings"),
    [
        ("b.csv", "image,category,x1,y1,x2,y2\na.png,cat,20,10,120,60\nempty.png,,,,,\n", {}),
        ("b.csv", "file_name,label,x,y,width,height\na.png,cat,20,10,100,50\n", {}),
        ("b.csv", 'image,category,bbox\na.png,cat,"[20, 10, 100, 50]"\n', {"box_space": "xywh"}),
        ("b.json", '[{"image": "a.png", "class": "cat", "bbox": [20, 10, 120, 60]}]', {}),
        (
            "b.jsonl",
            '{"image": "a.png", "name": "cat", "box": [100, 100, 600, 600]}\n\n',
            {"box_space": "norm1000"},
        ),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str, settings: Mapping[str, Any]) -> None:
    for image in ("a.png", "empty.png"):
        Image.new("RGB", (200, 100)).save(tmp_path / image)
    (tmp_path / name).write_text(text)
    rows = built(tmp_path / name, tmp_path / "rows.jsonl", kind="table", **settings)
    assert [(row["category"], boxes_of(row)) for row in rows] == [("cat", [(100, 100, 600, 600)])]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.csv", "image,x1,y1,x2,y2\na.png,1,2,3,4\n", "row 0: no column for the category"),
        ("b.csv", "category,x1,y1,x2,y2\ncat,1,2,3,4\n", "row 0: no column for the image"),
        ("b.csv", "image,category\na.png,cat\n", "row 0: no box: columns x1, y1"),
        (
            "b.csv",
            "image,category,x1,y1,x2,y2\na.png,cat,1,2,3\n",
            "row 0: has not as many fields as the header",
        ),
        ("b.csv", "image,category,x1,y1,x2,y2\na.png,cat,1,2,3,four\n", "row 0: a box is four numbers"),
        ("b.csv", "image,category,x1,y1,x2,y2\nno.png,cat,1,2,3,4\n", "no.png: no such image"),
        ("b.csv", "image,category,x1,y1,x2,y2\na.png,cat,90,2,3,40\n", "row 0 is inverted"),
        ("b.json", "[[1]]", "row 0: an object was expected, got list"),
        ("b.jsonl", '{"image": "a.png",\n', "line 1: not valid JSON"),
        ("b.txt", "", "must end in .csv, .json or .jsonl"),
    ],
)
def test_faults_of_tables_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as raised:
        built(tmp_path / name, tmp_path / "rows.jsonl", kind="table")
    assert message in str(raised.value)


# The JSON stream


def streamed(path: Path, content: str, block: int, monkeypatch: pytest.MonkeyPatch) -> list:
    path.write_text(content, encoding="utf-8")
    monkeypatch.setattr("virft.data.json_stream.CHUNK", block)
    return list(elements(path))


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
def test_the_stream_reads_what_json_reads(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {
        "info": {"a": [1, {"b": None}]},
        "numbers": [1, -2.5, 1e-3, 12345678901234567890],
        "words": ["", 'a "quoted" ]}, \\ \u00e9 \U0001f600', "x" * 50],
        "nested": [{"bbox": [1, 2, 3, 4], "more": {"deep": [[]]}}, True, None],
        "empty": [],
        "last": -17,
    }
    expected = []
    for key, value in document.items():
        expected += [(key, v) for v in value] if isinstance(value, list) else [(key, value)]
    for text in (
        json.dumps(document),
        json.dumps(document, indent=1),
        " " + json.dumps(document, ensure_ascii=False),
    ):
        assert streamed(tmp_path / "x.json", text + "\n", block, monkeypatch) == expected
    assert streamed(tmp_path / "x.json", "[1, [2], {}]", block, monkeypatch) == [("", 1), ("", [2]), ("", {})]
    assert streamed(tmp_path / "x.json", "{}", block, monkeypatch) == []


@pytest.mark.parametrize("block", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": [1, 2', "cut short"),
        ('{"a": [{"b": "c', "cut short"),
        ('{"a": [1 2]}', "character 9: ',' or ']' was expected"),
        ('{"a": [1], b: 2}', "character 11: a key in double quotes"),
        ('{"a" 1}', "character 5: ':' was expected"),
        ('{"a": nope}', "character 6: Expecting value"),
        ('{"a": 1} x', "character 9: text follows the end"),
        ("7", "an object or an array"),
        ("", "an object or an array"),
    ],
)
def test_the_stream_names_where_a_file_is_wrong(
    tmp_path: Path, text: str, message: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as raised:
        streamed(tmp_path / "x.json", text, block, monkeypatch)
    assert message in str(raised.value)


def test_json_beyond_the_reader_and_packed_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content, message in (
        (b'{"a": ' + b"[" * 200_000, "line 1: cannot be read as JSON: brackets are nested too deeply"),
        (b'{"a": [' + b"1" * 6000 + b"]}", "line 1: cannot be read as JSON: a number has too many digits"),
        (gzip.compress(b"{}"), "packed by gzip, not text: unpack it"),
    ):
        path.write_bytes(content)
        for read in (elements, records, lambda path: [read_json(path)]):
            with pytest.raises(UserError, match=message.removeprefix("line 1: ")):
                list(read(path))


def test_an_early_fault_is_found_without_reading_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    seconds = {}
    for first in ("nope", "1"):
        path.write_text(f'{{"a": [{first}, ' + "1, " * 1_000_000 + "1]}")
        start = time.process_time()
        with pytest.raises(UserError, match="character 7") if first == "nope" else nullcontext():
            for _ in elements(path):
                pass
        seconds[first] = time.process_time() - start
    assert seconds["nope"] < seconds["1"] / 4


# Outputs


def digest(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["set.jsonl", "set.parquet", "set"])
def test_the_same_command_gives_the_same_bytes_with_any_number_of_processes(
    root: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = program(root, "build_detection").main
    content = many(60)
    for image in content["images"]:
        Image.new("RGB", (200, 100), (image["id"], 0, 0)).save(tmp_path / image["file_name"])
    (tmp_path / "source.json").write_text(json.dumps(content))
    seen = []
    for processes in ("1", "3", "1"):
        out = tmp_path / "out"
        arguments = ["--source", str(tmp_path / "source.json"), "--output", str(out / name), "--rows", "30"]
        main([*arguments, "--negatives", "0.25", "--seed", "5", "--processes", processes])
        made = digest(out)
        manifest = json.loads(made[f"{name}.manifest.json"])
        assert manifest["counts"]["rows"] == 30
        assert manifest["counts"]["negatives"] == round(30 * 0.25)
        assert manifest["settings"]["source"]["sha256"]
        # What was typed is part of the manifest; the rest must be the same for every number of processes.
        manifest.pop("command")
        seen.append({**made, f"{name}.manifest.json": manifest})
        assert "30 rows" in capsys.readouterr().out
        shutil.rmtree(out)
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("name", ["rows.parquet", "rows"])
def test_sets_with_images_inside_train_anywhere(tmp_path: Path, name: str) -> None:
    source = tmp_path / "from" / "source.json"
    source.parent.mkdir()
    source.write_text(json.dumps(coco([(1, 1, 20, 10, 100, 50), (2, 1, 0, 0, 50, 50)])))
    for number in (1, 2):
        Image.new("RGB", (200, 100), (number, 2, 3)).save(source.parent / f"{number}.png")
    build(DetectionSettings(source), Target.of(tmp_path / name))
    shutil.rmtree(source.parent)
    rows = load_rows(str(tmp_path / name))
    assert rows["image_sizes"] == [[[200, 100]], [[200, 100]]]
    assert rows["solution"][0] == "<answer>[{'Position': [100, 100, 600, 600], 'Confidence': 1}]</answer>"
    # As the reference's loader reads it.
    import datasets

    whole = (
        datasets.load_from_disk(str(tmp_path / name))["train"]
        if name == "rows"
        else datasets.Dataset.from_parquet(str(tmp_path / name), cache_dir=str(tmp_path / "cache"))
    )
    assert whole[1]["image"].getpixel((0, 0)) == (2, 2, 3)


def test_a_set_that_stands_there_is_left_or_refused(make: Make, tmp_path: Path) -> None:
    content = coco([(1, 1, 20, 10, 100, 50)])
    make(content)
    target, settings = Target.of(tmp_path / "out" / "rows.jsonl"), DetectionSettings(tmp_path / "source.json")
    before = target.path.stat().st_mtime_ns
    assert build(settings, target) is None
    assert target.path.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="exists and was not built so: pass --overwrite"):
        build(DetectionSettings(tmp_path / "source.json", negatives=0.2), target)
    target.path.write_text(target.path.read_text() + "{}\n")
    with pytest.raises(UserError, match="--overwrite"):
        build(settings, target)


def test_a_suffix_that_is_no_form_is_refused() -> None:
    with pytest.raises(UserError, match=r"must end in \.jsonl or \.parquet"):
        Target.of("rows.csv")


def test_a_name_that_the_system_refuses_is_named() -> None:
    with pytest.raises(UserError, match="File name too long; name another"):
        Target.of("a" * 300 + ".jsonl")


def test_an_index_that_cannot_be_written_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(coco([(1, 1, 20, 10, 100, 50)])))
    command = f"ulimit -f 8; {sys.executable} {root}/dataset/build_detection.py --source {tmp_path}/x.json"
    done = subprocess.run(
        ["bash", "-c", f"{command} --output {tmp_path}/out/a.jsonl"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "the index cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_two_builds_of_one_set_exclude_each_other(tmp_path: Path) -> None:
    with (
        working_folder(tmp_path / "a.jsonl"),
        pytest.raises(UserError, match="another process is building it"),
        working_folder(tmp_path / "a.jsonl"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named() -> None:
    with (
        pytest.raises(UserError, match="the disk is full; nothing of the set was left"),
        naming_disk_faults(Path("data")),
        open("/dev/full", "w") as full,
    ):
        full.write("x")
        full.flush()
    with pytest.raises(UserError, match="data: no; name another"), naming_disk_faults(Path("data")):
        raise PermissionError(errno.EACCES, "no")


def test_what_a_killed_build_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = [".a[1].7.tmp", ".a[1].7.tmp.cache", ".a[1].7.old.tmp", ".a[1].manifest.json.7.tmp"]
    others = [".a[1].jsonl.7.tmp", ".a1.7.tmp", ".a[1].build2"]  # of builds that may be running
    for name in (*left, *others):
        (tmp_path / name).write_text("")
    with working_folder(tmp_path / "a[1]", tmp_path / "work"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "work"])


def test_sets_of_one_name_do_not_share_a_place_in_the_work_folder(tmp_path: Path) -> None:
    work = tmp_path / "work"
    with working_folder(tmp_path / "a" / "s", work) as one, working_folder(tmp_path / "b" / "s", work) as two:
        assert one != two
    with (
        working_folder(tmp_path / "a" / "s", work),
        pytest.raises(UserError, match="another process"),
        working_folder(tmp_path / "a" / "s"),
    ):
        pass


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows"])
def test_a_set_never_stands_without_its_manifest(
    make: Make, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a build is killed after either rename: the same command must then be able to go on."""
    content, target = coco([(1, 1, 20, 20, 100, 50)]), Target.of(tmp_path / "out" / name)
    make(content)  # the images
    settings = DetectionSettings(tmp_path / "source.json")
    build(settings, target)
    before = target.manifest.read_bytes()
    assert build(settings, target) is None

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace" if "." in name else "pathlib.Path.rename", killed)
        build(replace(settings, seed=1), Target.of(tmp_path / "new" / name))
    assert list((tmp_path / "new").iterdir()) == []
    target.manifest.unlink()
    order = []
    rename, replaced = Path.rename, os.replace
    monkeypatch.setattr(Path, "rename", lambda a, b: (order.append(Path(b)), rename(a, b))[1])
    monkeypatch.setattr("os.replace", lambda a, b: (order.append(Path(b)), replaced(a, b))[1])
    build(settings, target, overwrite=True)
    assert [path for path in order if path in (target.path, target.manifest)] == [
        target.manifest,
        target.path,
    ]
    assert target.manifest.read_bytes() == before


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 1 MB, where the system lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows"])
@pytest.mark.parametrize("index_elsewhere", [False, True])
def test_a_disk_that_fills_is_named_and_left_empty(
    small_disk: Path, tmp_path: Path, name: str, index_elsewhere: bool
) -> None:
    content = many(2000)
    (tmp_path / "source.json").write_text(json.dumps(content))
    for image in content["images"]:
        (tmp_path / image["file_name"]).write_bytes(os.urandom(2000))
    work = tmp_path / "work" if index_elsewhere else None
    with pytest.raises(UserError, match=f"{small_disk}: the disk is full"):
        build(DetectionSettings(tmp_path / "source.json"), Target.of(small_disk / name), work_folder=work)
    assert list(small_disk.iterdir()) == []
    assert work is None or list(work.iterdir()) == []


@pytest.mark.slow
def test_a_killed_build_leaves_no_set_and_starts_again_cleanly(root: Path, tmp_path: Path) -> None:
    content = many(30_000)
    (tmp_path / "source.json").write_text(json.dumps(content))
    for image in content["images"]:
        (tmp_path / image["file_name"]).touch()
    out = tmp_path / "out" / "rows.jsonl"
    command = [sys.executable, str(root / "dataset" / "build_detection.py"), "--source"]
    command += [str(tmp_path / "source.json"), "--output", str(out), "--processes", "2"]
    for wait_for in (".rows.jsonl.build/index.sqlite", ".rows.jsonl.*.tmp"):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list(out.parent.glob(wait_for)):
            assert running.poll() is None, "the build ended before it could be killed"
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert not out.exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert sorted(p.name for p in out.parent.iterdir()) == ["rows.jsonl", "rows.jsonl.manifest.json"]
    assert sum(1 for _ in out.open()) == 30_000 + 15_000 + 7_500


SLEEPERS = """
import sys, time
from virft.data.builders.ordered import ordered_map
from virft.programs import run_program

def work(item):
    import os
    open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
    time.sleep(600)

if __name__ == "__main__":
    run_program(lambda: list(ordered_map(work, range(8), 2)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill the parent", "kill a worker", "interrupt"])
def test_workers_end_with_the_build_and_say_nothing(tmp_path: Path, how: str) -> None:
    program = tmp_path / "sleepers.py"
    program.write_text(SLEEPERS)
    pids = tmp_path / "pids"
    pids.mkdir()
    running = subprocess.Popen(
        [sys.executable, str(program), str(pids)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(list(pids.iterdir())) < 2:
        assert running.poll() is None
        time.sleep(0.01)
    workers = [int(path.name) for path in pids.iterdir()]
    if how == "kill the parent":
        running.kill()
    elif how == "kill a worker":
        os.kill(workers[0], signal.SIGKILL)
    else:
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does; the workers must not answer it
        time.sleep(0.5)
        assert all(Path(f"/proc/{pid}").exists() for pid in workers) or not Path("/proc").exists()
        os.kill(workers[0], signal.SIGTERM)  # instead of waiting for the end of their sleep
    _, said = running.communicate(timeout=120)  # hangs while a worker holds the pipe
    assert "Traceback" not in said
    if how == "kill a worker":
        assert running.returncode == 2
        assert "pass a smaller --processes" in said


def test_the_program_says_what_is_wrong_in_one_line(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(root / "dataset" / "build_detection.py")]
    done = subprocess.run(
        [*command, "--source", "no.json", "--output", str(tmp_path / "a.jsonl")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: no.json: no such file or folder\n"


# Parts

RANK = 18275202380345657156


def test_ranks_depend_on_nothing_but_their_words() -> None:
    assert rank(0, "cat", "1") == RANK  # a choice made once must be the same for ever
    assert rank(0, "cat", "1") == rank(0, "cat", 1) != rank(1, "cat", "1")
    assert rank(0, "a", "bc") != rank(0, "ab", "c")


def test_shots_keep_the_order_of_the_items() -> None:
    items = [(label, number) for number in range(10) for label in "ab"]
    chosen = shots(items, lambda i: i[0], lambda i: -i[1], 2)
    assert chosen == [("a", 8), ("b", 8), ("a", 9), ("b", 9)]


def double(value: int) -> int:
    """Work that can be sent to another process."""
    if value == 13:
        raise UserError("thirteen")
    return 2 * value


@pytest.mark.parametrize("processes", [1, 2])
def test_ordered_map_keeps_order_and_raises(processes: int) -> None:
    assert list(ordered_map(double, range(12), processes)) == [2 * v for v in range(12)]
    with pytest.raises(UserError, match="thirteen"):
        list(ordered_map(double, range(10, 40), processes))


def test_no_written_box_is_empty() -> None:
    for low in range(40):
        box = RawBox("here", (0.25 * low, 1, 1.0, 50), False)
        verdict = judge([box], (500, 500), BoxRules(min_side=0), extent=(1000, 1000))
        for kept in verdict.boxes:
            x1, _, x2, _ = (round(2 * v) for v in kept)
            assert x1 < x2


def test_images_of_another_set_are_left_out(make: Make, tmp_path: Path) -> None:
    content = coco([(image, 1, 10, 10, 50, 50) for image in range(1, 9)], images=8)
    train = make(content, "train.jsonl", categories=("cat",), shots=3)
    others = (tmp_path / "out" / "train.jsonl",)
    validation = make(content, "validation.jsonl", shots=5, leave_out=others, negatives=0.2)
    seen = {row["image_id"] for row in train}
    assert len(seen) == 3
    assert {row["image_id"] for row in validation} == {str(i) for i in range(1, 9)} - set(map(str, seen)) or {
        row["image_id"] for row in validation
    } == set(range(1, 9)) - seen
    with pytest.raises(UserError, match="no rows"):
        make(content, "none.jsonl", leave_out=(others[0], tmp_path / "out" / "validation.jsonl"))
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text(json.dumps({"problem": "p", "solution": "s"}) + "\n")
    with pytest.raises(UserError, match="--leave_out .*foreign.jsonl: no column 'image_id'"):
        make(content, "none.jsonl", leave_out=(foreign,))


def test_negatives_ask_no_image_that_was_left_out(make: Make, tmp_path: Path) -> None:
    content = many(12)
    make(content, name="validation.jsonl", shots=2, categories=("cat",))
    left_out = {row["image_id"] for row in map(json.loads, (tmp_path / "out" / "validation.jsonl").open())}
    rows = make(content, negatives=0.3, leave_out=(tmp_path / "out" / "validation.jsonl",))
    assert not left_out & {row["image_id"] for row in rows}
    assert make.counts["images_left_out"] == len(left_out) == 2
    assert make.counts["rows"] == len(rows) == make.counts["positives"] + make.counts["negatives"]
    assert sum("No Objects<" in row["solution"] for row in rows) == make.counts["negatives"]


def test_pairs_left_out_are_those_of_the_asked_categories(make: Make) -> None:
    content = coco([(1, 1, 20, 10, 100, 50), (2, 1, 20, 10, 1, 50), (3, 2, 20, 10, 1, 50)])
    make(content, categories=("cat",))
    assert make.counts["pairs_left_out"] == {"tiny": 1}
    assert make.counts["per_category"] == {"cat": {"positives": 1, "negatives": 0, "left_out": {"tiny": 1}}}
