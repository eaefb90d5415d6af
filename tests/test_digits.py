"""Digit scenes: determinism, pools that do not mix, boxes that are where the ink is, files that agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from virft.boxes import convert
from virft.data import digits
from virft.data.digits import NAMES, POOLS, Scenes, draw, write
from virft.data.training import load_rows, target_text
from virft.errors import UserError
from virft.parsing import parse_class, parse_detections

MANY = Scenes(24, "train", seed=3, targets=(1, 3), distractors=(0, 2), absent=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": MANY, "heldout": Scenes(10, "heldout")}
    return write(tmp_path_factory.mktemp("scenes") / "digits", splits)


def rows_of(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_every_scan_is_in_one_pool() -> None:
    indices = [index for pool in POOLS.values() for index in pool]
    assert sorted(indices) == list(range(1797))


def test_a_scene_shows_only_scans_of_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    scans, labels = digits._scans()
    blank = scans.copy()
    for name in set(POOLS) - {"heldout"}:
        blank[list(POOLS[name])] = 0.0
    scenes = Scenes(20, "heldout", distractors=(1, 2))
    before = [np.asarray(draw(scenes, i).image) for i in range(scenes.count)]
    monkeypatch.setattr(digits, "_scans", lambda: (blank, labels))
    for index, image in enumerate(before):
        assert np.array_equal(image, np.asarray(draw(scenes, index).image))


def test_scenes_repeat_and_depend_on_seed_pool_and_index_alone() -> None:
    first = draw(MANY, 5)
    assert np.array_equal(first.image, draw(MANY, 5).image) and first.boxes == draw(MANY, 5).boxes
    longer = replace(MANY, count=99, confidence=(0.1, 0.9))
    assert np.array_equal(first.image, draw(longer, 5).image)
    for other in (replace(MANY, seed=4), replace(MANY, pool="warmup")):
        assert not np.array_equal(first.image, draw(other, 5).image)


def test_ink_lies_inside_the_boxes() -> None:
    """Without noise and ramp the canvas is one colour, so every other pixel is ink."""
    scenes = Scenes(40, "train", targets=(1, 3), noise=0.0, ramp=0.0, contrast=(1.0, 1.0))
    for index in range(scenes.count):
        scene = draw(scenes, index)
        pixels = np.asarray(scene.image).astype(int)
        inside = np.zeros(pixels.shape[:2], bool)
        for box in scene.boxes:
            x1, y1, x2, y2 = (round(v) for v in convert(box, "norm1000", "pixels", scene.image.size))
            inside[y1:y2, x1:x2] = True
            assert (pixels[y1:y2, x1:x2] != pixels[~inside][0]).any()
        background = pixels[~inside]
        assert (background == background[0]).all()


def test_every_class_is_asked_equally_often_and_corners_are_on_the_grid() -> None:
    scenes = Scenes(30, "warmup", classes=(1, 4, 7), grid=50)
    drawn = [draw(scenes, i) for i in range(scenes.count)]
    assert [sum(s.digit == d for s in drawn) for d in (1, 4, 7)] == [10, 10, 10]
    corners = [corner for scene in drawn for box in scene.boxes for corner in box]
    assert all(corner % 50 == 0 and 0 <= corner <= 1000 for corner in corners)
    assert any(corner % 100 for corner in corners)


def test_faded_digits_are_nearly_invisible() -> None:
    clear = Scenes(1, "train", noise=0.0, ramp=0.0, contrast=(1.0, 1.0))
    spread = [np.ptp(np.asarray(draw(replace(clear, faded=share), 0).image)[..., 0]) for share in (0, 1)]
    assert spread[1] < 20 < spread[0]


def test_training_rows_load_and_their_solution_is_what_the_annotations_say(folder: Path) -> None:
    rows = load_rows(str(folder / "train.jsonl"))
    coco = json.loads((folder / "train.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert len(rows) == MANY.count == len(coco["images"])
    none = 0
    for row, image in zip(rows, coco["images"], strict=True):
        theirs = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        size = (image["width"], image["height"])
        boxes = {convert(a["bbox"], "xywh", "norm1000", size) for a in theirs}
        solution = parse_detections(row["solution"])
        assert solution.ok
        assert {tuple(round(v) for v in d.box) for d in solution.value} == {
            tuple(round(v) for v in box) for box in boxes
        }
        taught = parse_detections(target_text(row))
        assert {d.box for d in taught.value} == {d.box for d in solution.value}
        assert all(names[a["category_id"]] in row["problem"] for a in theirs)
        none += not boxes
        with Image.open(folder / image["file_name"]) as opened:
            assert opened.size == size == (MANY.canvas, MANY.canvas)
    assert 0 < none < MANY.count


def test_confidences_are_tenths_within_their_bounds(tmp_path: Path) -> None:
    folder = write(tmp_path / "digits", {"warmup": Scenes(200, "warmup", confidence=(0.1, 0.9))})
    texts = [row["completion"] for row in rows_of(folder, "warmup")]
    confidences = {text.split("'Confidence': ")[1][:4] for text in texts}
    assert confidences == {f"0.{tenth}0" for tenth in range(1, 10)}


def test_classification_rows_name_the_digit_and_lie_in_class_folders(tmp_path: Path) -> None:
    folder = write(tmp_path / "names", {"few": Scenes(20, "train", task="classification")})
    rows = rows_of(folder, "few")
    for index, row in enumerate(rows):
        assert parse_class(row["solution"]).value == NAMES[index % 10] == Path(row["image"]).parent.name
    assert not (folder / "few.json").exists()


def test_the_same_folder_is_left_alone_and_another_is_refused(folder: Path) -> None:
    splits = {"train": MANY, "heldout": Scenes(10, "heldout")}
    before = (folder / "train.jsonl").stat().st_mtime_ns
    write(folder, splits)
    assert (folder / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="made from other settings"):
        write(folder, {"train": replace(MANY, seed=9)})


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "digits", {"train": MANY}, interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pool": "test"}, "pool must be one of"),
        ({"task": "segmentation"}, "task must be one of"),
        ({"count": 0}, "count must be at least 1"),
        ({"classes": (1, 1)}, "different digits"),
        ({"task": "classification", "targets": (1, 2)}, "one digit a scene"),
        ({"classes": (1,), "distractors": (0, 1)}, "at least two classes"),
        ({"grid": 300}, "divisor of 1000"),
        ({"targets": (2, 1)}, "least, most"),
    ],
)
def test_settings_that_no_scene_can_have_are_refused(wrong: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Scenes(**({"count": 4, "pool": "train"} | wrong))
