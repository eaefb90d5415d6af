"""Your own rows as an examination: the questions, and the numbers of each task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from virft import prompts
from virft.data import solutions
from virft.errors import UserError
from virft.evaluate import rows
from virft.predictions import meta_path
from virft.types import Box, Prediction

BOX = Box(100, 200, 300, 400)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Rows of three tasks about two pictures."""
    for number in range(2):
        Image.new("RGB", (100, 60), (number, 0, 0)).save(tmp_path / f"{number}.png")
    lines = [
        {"task": "detection", "problem": prompts.detection("cat"), "solution": solutions.detection([BOX])},
        {"task": "detection", "problem": prompts.detection("dog"), "solution": solutions.detection([BOX])},
        {"task": "grounding", "problem": prompts.grounding("it"), "solution": solutions.grounding(BOX)},
        {
            "task": "classification",
            "problem": prompts.classification("a pet", "species of the pet"),
            "solution": solutions.classification("Siamese cat"),
            "system": "be brief",
        },
    ]
    for number, line in enumerate(lines):
        line["image"] = f"{number % 2}.png"
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(model: Path, written: Path, task: str) -> rows.Settings:
    return rows.Settings(
        model_path=str(model),
        dataset=str(written),
        task=task,
        output=str(written.parent / "out" / "replies.jsonl"),
        max_new_tokens=4,
    )


def test_only_rows_of_the_task_are_asked_with_their_own_system_message(
    tiny_qwen2_vl: Path, written: Path
) -> None:
    samples, stated = rows.questions(settings(tiny_qwen2_vl, written, "classification"), "norm1000")
    assert [(s.id, s.system, Path(s.images[0]).name) for s in samples] == [("3", "be brief", "1.png")]
    assert stated["task"] == "classification" and len(stated["pixel_limits"]) == 2
    with pytest.raises(UserError, match="--task 'counting' is unknown"):
        rows.questions(settings(tiny_qwen2_vl, written, "counting"), "norm1000")


def test_solutions_of_another_task_are_refused(tiny_qwen2_vl: Path, written: Path) -> None:
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    written.write_text("".join(json.dumps({**line, "task": "detection"}) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"rows? .*3: the solution is no answer to --task detection"):
        rows.questions(settings(tiny_qwen2_vl, written, "detection"), "norm1000")


def test_embedded_pictures_become_files_once(tiny_qwen2_vl: Path, written: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from datasets import Image as Picture

    lines = [json.loads(line) for line in written.read_text().splitlines()]
    for line in lines:
        line["image"] = {"bytes": (tmp_path / line["image"]).read_bytes(), "path": None}
    Dataset.from_list(lines).cast_column("image", Picture()).to_parquet(tmp_path / "rows.parquet")
    asked = settings(tiny_qwen2_vl, tmp_path / "rows.parquet", "detection")
    samples, _ = rows.questions(asked, "norm1000")
    again, _ = rows.questions(asked, "norm1000")
    assert [s.images for s in samples] == [s.images for s in again]
    assert len(list((tmp_path / "out" / "replies.images").iterdir())) == 2
    with Image.open(samples[1].images[0]) as picture:
        assert picture.getpixel((0, 0)) == (1, 0, 0)


REPLIES = {
    "detection": (f"<think></think>{solutions.detection([BOX])}", "nothing"),
    "grounding": (f"<think></think>{solutions.grounding(BOX)}",),
    "classification": ("<think></think><answer>siamese cat</answer>",),
}


@pytest.mark.parametrize("task", REPLIES)
def test_scores_are_those_of_the_solutions(
    tiny_qwen2_vl: Path, written: Path, task: str, tmp_path: Path
) -> None:
    samples, stated = rows.questions(settings(tiny_qwen2_vl, written, task), "norm1000")
    path = tmp_path / "replies.jsonl"
    lines = [
        Prediction(sample.id, reply, "norm1000", meta=sample.meta).to_json()
        for sample, reply in zip(samples, REPLIES[task], strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="does not say that rows were asked"):
        rows.score(rows.ScoreSettings(str(path)))
    skipped = {"skipped_images": [{"id": "99", "reason": "broken"}]}
    meta_path(path).write_text(json.dumps(stated | skipped))
    numbers = rows.score(rows.ScoreSettings(str(path), str(tmp_path / "scores.json")))
    assert numbers["skipped"] == 1
    if task == "detection":
        # One category is found, the other one's reply cannot be read.
        assert (numbers["AP"], numbers["mean_iou"]) == pytest.approx((0.5, 0.5))
        assert sum(numbers["unreadable"].values()) == 1
        assert set(numbers["per_category"]) == {"cat", "dog"}
    elif task == "grounding":
        assert (numbers["miou"], numbers["accuracy"]) == (1.0, 1.0)
    else:
        assert numbers["accuracy"] == 1.0
    assert json.loads((tmp_path / "scores.json").read_text())["protocol"]["inference"]["task"] == task


@pytest.mark.slow
def test_rows_are_asked_and_scored_by_one_command(tiny_qwen2_vl: Path, written: Path) -> None:
    numbers = rows.evaluate(settings(tiny_qwen2_vl, written, "detection"))
    assert numbers["questions"] == 2 and sum(numbers["unreadable"].values()) == 2
    assert rows.evaluate(settings(tiny_qwen2_vl, written, "detection")) == numbers
