"""Boxes ranked by how probable their coordinates were to the model that wrote them."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from virft import tiny
from virft.data import coco as data
from virft.data import digits
from virft.data.training import load_rows, target_text
from virft.errors import UserError
from virft.evaluate import coco as suite
from virft.evaluate import lvis
from virft.metrics import detection
from virft.parsing import parse_detections
from virft.predictions import load_predictions
from virft.types import Prediction

TRUTH = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 1000, "height": 1000} for i in (1, 2)],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"image_id": i, "category_id": 1, "bbox": [100, 100, 200, 200]} for i in (1, 2)],
}
WRONG = "{'Position': [700, 700, 800, 800], 'Confidence': 0.90}"
RIGHT = "{'Position': [100, 100, 300, 300], 'Confidence': 0.10}"


def written(image: int, text: str, sure: dict[str, float], step: int = 1) -> Prediction:
    """A reply in tokens of ``step`` characters; those that hold a part of a key of ``sure`` get its value."""
    ends = [min(end, len(text)) for end in range(step, len(text) + step, step)]
    logprobs = []
    for end in ends:
        values = [
            value
            for part, value in sure.items()
            if text.index(part) < end and end - step < text.index(part) + len(part)
        ]
        logprobs.append(values[0] if values else -0.5)
    return Prediction(
        f"{image}/1",
        text,
        "norm1000",
        image_size=(1000, 1000),
        tokens=len(ends),
        meta={"image_id": image, "category_id": 1},
        logprobs=tuple(logprobs),
        token_ends=tuple(ends),
    )


def two_boxes(**sure: float) -> list[Prediction]:
    """The wrong box more confident than the right one on one image; nothing on the other."""
    reply = f"<think>I look.</think><answer>[{WRONG}, {RIGHT}]</answer>"
    known = {"700, 700, 800, 800": -2.0, "100, 100, 300, 300": -0.01, "0.90": 0.0, "0.10": -9.0} | sure
    return [written(1, reply, known), written(2, "<think>.</think><answer>No Objects</answer>", {})]


def test_ranking_by_likelihood_instead_of_confidence() -> None:
    truth = detection.make_truth(TRUTH)
    results = detection.from_replies(two_boxes(), truth)
    numbers = detection.evaluate(results, truth)
    # One object of two is found, so that recall ends at one half: 51 of 101 points.
    assert numbers["AP"] == pytest.approx(51 / 101 / 2)
    assert numbers["constant_confidence"]["AP"] == pytest.approx(51 / 101 / 2)
    assert numbers["likelihood_ranked"] == pytest.approx({"AP": 51 / 101, "AP50": 51 / 101})
    # The words of the table; the boxes themselves are as they were.
    assert "ranked by the likelihood of their coordinates 50.5, AP50 50.5" in suite.table(numbers)
    assert [b["score"] for b in results.boxes] == [0.9, 0.1]
    assert all(set(entry) == {"image_id", "category_id", "bbox", "score"} for entry in results.boxes)


def test_the_coordinates_alone_count() -> None:
    truth = detection.make_truth(TRUTH)
    results = detection.from_replies(two_boxes(), truth)
    # One character a token: "700, 700, 800, 800" is 18 of them.
    assert results.likelihoods == pytest.approx([18 * -2.0, 18 * -0.01])
    others = two_boxes(
        **{"0.90": -7.0, "0.10": 0.0, "look": -50.0, "'Confidence'": -50.0, "]</answer>": -50.0}
    )
    assert detection.from_replies(others, truth).likelihoods == results.likelihoods
    changed = detection.from_replies(two_boxes(**{"100, 100, 300, 300": -3.0}), truth)
    assert changed.likelihoods == pytest.approx([18 * -2.0, 18 * -3.0])


@pytest.mark.parametrize("step", [1, 2, 3, 5, 1000])
def test_tokens_that_hold_any_character_of_the_coordinates_count_once(step: int) -> None:
    reply = f"<think>.</think><answer>[{RIGHT}]</answer>"
    prediction = written(1, reply, {}, step)
    (box,) = parse_detections(reply).value
    begin, end = box.span
    assert reply[begin:end] == "100, 100, 300, 300"
    touched = sum(e > begin and e - step < end for e in prediction.token_ends)
    assert detection.likelihood(prediction, box) == pytest.approx(-0.5 * touched)


def test_tokens_without_characters_inside_a_box_belong_to_it() -> None:
    text = "[{'Position': [1, 2, 3, 4]}]"
    begin = text.index("1")
    ends = (begin, begin, begin + 1, begin + 1, begin + 10, begin + 10, len(text))
    prediction = Prediction("a", text, "norm1000", logprobs=(-64, -32, -1, -2, -4, -16, -8), token_ends=ends)
    (box,) = parse_detections(text).value
    # The box has tokens 2 to 4: those before end where it begins, and token 4 is the first to reach its end.
    assert detection.likelihood(prediction, box) == -7


def test_no_likelihoods_no_ranking() -> None:
    truth = detection.make_truth(TRUTH)
    first, second = two_boxes()
    for replies in (
        [dataclasses.replace(first, logprobs=None, token_ends=None), second],
        [first, dataclasses.replace(second, logprobs=None, token_ends=None)],
    ):
        results = detection.from_replies(replies, truth)
        assert detection.likelihood_ranked(results) is None
        numbers = detection.evaluate(results, truth)
        assert "likelihood_ranked" not in numbers
        assert "likelihood" not in suite.table(numbers)
    entries = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}]
    assert detection.likelihood_ranked(detection.from_coco_results(entries, truth)) is None


def test_a_dropped_box_has_no_place_in_the_ranking() -> None:
    truth = detection.make_truth(TRUTH)
    inverted = WRONG.replace("700, 700, 800, 800", "800, 800, 700, 700")
    reply = f"<answer>[{inverted}, {RIGHT}]</answer>"
    results = detection.from_replies([written(1, reply, {"100, 100, 300, 300": -1.0})], truth)
    assert results.dropped == {"bad_bbox": 1}
    assert results.likelihoods == pytest.approx([-18.0])
    assert [b["score"] for b in detection.likelihood_ranked(results).boxes] == results.likelihoods


def test_tokens_of_another_reply_are_refused() -> None:
    prediction, _ = two_boxes()
    short = dataclasses.replace(
        prediction, logprobs=prediction.logprobs[:60], token_ends=prediction.token_ends[:60]
    )
    with pytest.raises(UserError, match="'1/1': its token_ends do not cover its reply"):
        detection.from_replies([short], detection.make_truth(TRUTH))


def test_lvis_ranks_by_its_own_rules(tmp_path: Path) -> None:
    annotations = TRUTH | {
        "categories": [{"id": 1, "name": "cat", "frequency": "r"}],
        "images": [i | {"neg_category_ids": [], "not_exhaustive_category_ids": []} for i in TRUTH["images"]],
    }
    annotations["annotations"] = [a | {"id": i} for i, a in enumerate(annotations["annotations"])]
    (tmp_path / "gt.json").write_text(json.dumps(annotations))
    lines = "".join(json.dumps(p.to_json()) + "\n" for p in two_boxes())
    (tmp_path / "p.jsonl").write_text(lines)
    settings = lvis.ScoreSettings(
        annotations=str(tmp_path / "gt.json"), predictions=str(tmp_path / "p.jsonl")
    )
    numbers = lvis.score(settings)
    assert numbers["likelihood_ranked"]["AP"] == pytest.approx(2 * numbers["AP"])


# ------------------------------------------------------------------------------------------------ programs


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six digit scenes to learn by heart and twelve others, with their annotations."""
    splits = {
        "train": digits.Scenes(count=6, pool="train", seed=2, absent=0.2),
        "test": digits.Scenes(count=12, pool="heldout", seed=3),
    }
    return digits.write(tmp_path_factory.mktemp("scenes") / "digits", splits)


@pytest.fixture(scope="module")
def learnt(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows how boxes are written, and where they are on six scenes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("learnt") / "model"
    tiny.build(folder, words=digits.NAMES, thoughts=[digits.THOUGHTS["detection"]], **tiny.LEARNER)
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    rows = load_rows(str(scenes / "train.jsonl"))
    asked = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["problem"]}]}]
        for row in rows
    ]
    questions = processor.apply_chat_template(asked, add_generation_prompt=True)
    whole = [f"{q}{target_text(row)}<|im_end|>" for q, row in zip(questions, rows, strict=True)]
    images = [Image.open(row["images"][0]["path"]) for row in rows]
    batch = processor(text=whole, images=images, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(100):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def run(root: Path, folder: Path, *arguments: str) -> str:
    """A command's standard output; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_model_asked_for_likelihoods_is_scored_by_them(
    root: Path, scenes: Path, learnt: Path, tmp_path: Path
) -> None:
    ask, score = (
        str(root / "coco_evaluation" / n) for n in ("Qwen2_VL_coco_infere.py", "coco_evaluation.py")
    )
    annotations = ["--annotations", str(scenes / "test.json")]
    asking = [
        *annotations,
        *("--image_folder", str(scenes), "--model_path", str(learnt), "--device", "cpu"),
        *("--candidates", "ground_truth", "--max_new_tokens", "60"),
    ]
    run(root, tmp_path, ask, *asking, "--logprobs", "--output", "p.jsonl")
    said = run(root, tmp_path, score, *annotations, "--predictions", "p.jsonl", "--output", "s.json")
    assert "ranked by the likelihood of their coordinates" in said
    numbers = json.loads((tmp_path / "s.json").read_text())
    assert numbers["boxes"] > 3
    assert numbers["protocol"]["inference"]["logprobs"] is True

    # The same from the replies themselves: a box's text spelt out, its tokens found by their places.
    predictions = load_predictions(tmp_path / "p.jsonl")
    truth = detection.make_truth(data.load_annotations(scenes / "test.json"))
    results = detection.from_replies(predictions, truth)
    expected = []
    for p in predictions:
        starts = (0, *p.token_ends[:-1])
        for found in parse_detections(p.reply).value or ():
            begin = p.reply.index(", ".join(f"{v:.0f}" for v in found.box))
            end = p.reply.index("]", begin)
            tokens = zip(p.logprobs, starts, p.token_ends, strict=True)
            expected.append(math.fsum(v for v, first, last in tokens if first < end and last > begin))
    assert results.likelihoods == pytest.approx(expected)
    assert len(set(results.likelihoods)) > 3
    ranked = detection.average_precision(detection.likelihood_ranked(results), truth)
    assert numbers["likelihood_ranked"] == {name: ranked[name] for name in ("AP", "AP50")}

    # The one entry without the flag: the same replies, no ranking of that kind.
    said = run(root, tmp_path, "-m", "virft.evaluate", "coco", *asking, "--output", "q.jsonl")
    assert "likelihood" not in said
    plain = json.loads((tmp_path / "q.scores.json").read_text())
    assert plain["AP"] == numbers["AP"]
    assert "likelihood_ranked" not in plain
    assert [p.reply for p in load_predictions(tmp_path / "q.jsonl")] == [p.reply for p in predictions]
