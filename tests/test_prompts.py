"""Prompts are, to the letter, those that the public checkpoints were trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from virft import prompts
from virft.boxes import MODEL_SPACES
from virft.parsing import parse_detections


def samples(folder: Path, prefix: str) -> list[dict[str, str]]:
    with (folder / "dataset_samples.json").open(encoding="utf-8") as file:
        sets = json.load(file)
    return [
        row for name, found in sets.items() if name.startswith(prefix) for row in found.get("samples", [])
    ]


def test_detection_prompts_are_the_data_sets_own(shared_data: Path) -> None:
    rows = samples(shared_data, "ViRFT_COCO")
    assert len(rows) == 9
    for row in rows:
        category = re.search("category '(.*?)'", row["problem"])[1]
        assert prompts.detection(category) == row["problem"]
        assert parse_detections(row["solution"]).ok


def test_classification_prompts_are_the_data_sets_own(shared_data: Path) -> None:
    rows = [row for row in samples(shared_data, "ViRFT_CLS") if "problem" in row]
    assert [row["problem"] for row in rows] == [
        prompts.classification(*prompts.SUBJECTS["dog"]),
        prompts.classification(*prompts.SUBJECTS["aircraft"]),
    ]


def test_the_prompts_word_for_word() -> None:
    assert prompts.detection("hot dog") == (
        "Detect all objects belonging to the category 'hot dog' in the image, and provide the bounding boxes "
        "(between 0 and 1000, integer) and confidence (between 0 and 1, with two decimal places).\n"
        "If no object belonging to the category 'hot dog' in the image, return 'No Objects'.\n"
        "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
        "The output answer format should be as follows:\n"
        "<think> ... </think> <answer>[{'Position': [x1, y1, x2, y2], 'Confidence': number}, ...]</answer>\n"
        "Please strictly follow the format."
    )
    assert prompts.classification(*prompts.SUBJECTS["flower"]) == (
        "This is an image containing a plant. Please identify the species of the plant based on the image.\n"
        "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
        "The output answer format should be as follows:\n"
        "<think> ... </think> <answer>species name</answer>\n"
        "Please strictly follow the format."
    )
    assert prompts.grounding("the food {with} vitamin C") == (
        "Output the bounding box in the image corresponding to the instruction: the food {with} vitamin C. "
        "Output the thinking process in <think> </think> and your grouding box. "
        'Following "<think> thinking process </think>\n<answer>(x1,y1),(x2,y2)</answer>)" format.'
    )


@pytest.mark.parametrize("subject", ["aircraft", "flower", "pet", "car", "dog"])
def test_every_subject_makes_a_prompt(subject: str) -> None:
    contains, to_name = prompts.SUBJECTS[subject]
    text = prompts.classification(contains, to_name)
    assert f"containing {contains}." in text and f"identify the {to_name} based" in text


def test_a_prompt_says_its_space_and_can_be_said_in_another() -> None:
    for source in MODEL_SPACES:
        for target in MODEL_SPACES:
            asked = prompts.detection("cat", source)
            assert prompts.COORDINATE_PHRASE[source] in asked
            assert prompts.in_space(asked, source, target) == prompts.detection("cat", target)
    assert prompts.in_space("a question of mine", "norm1000", "abs_resized") == "a question of mine"
    with pytest.raises(KeyError):
        prompts.detection("cat", "pixels")


def test_the_prompt_s_own_template_is_no_answer() -> None:
    assert parse_detections(prompts.detection("cat")).reason == "bad_position"


@pytest.mark.parametrize("space", prompts.COORDINATE_PHRASE)
@pytest.mark.parametrize("name", ["cat", "hot dog", "driver's license", "it' in the image, and", "犬"])
def test_the_category_of_a_detection_prompt_is_read_back(space: str, name: str) -> None:
    assert prompts.asked_category(prompts.detection(name, space)) in (name, None)
    assert prompts.asked_category(prompts.detection("cat", space)) == "cat"


@pytest.mark.parametrize("text", ["", "Detect all objects", prompts.grounding("it"), "'cat'"])
def test_other_texts_ask_for_no_category(text: str) -> None:
    assert prompts.asked_category(text) is None
