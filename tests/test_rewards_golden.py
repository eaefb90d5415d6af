"""Every row of the real cases: the reference's value to 1e-9, or ours where the rules differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_rules
import pytest

from virft.rewards import load_rewards

DETECTION = ("accuracy_iou", "accuracy_confidence", "format")


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def completion(row: dict[str, Any]) -> str:
    if row["completion"] is not None:
        return row["completion"]
    prefix, unit, count, suffix = row["gen"]
    return prefix + unit * count + suffix


def values(names: tuple[str, ...], reply: str, solution: str) -> list[float]:
    return [reward.score(reply, {"solution": solution}).value for reward in load_rewards(names)]


def test_every_fuzz_detection_row_meets_the_formula(shared_data: Path) -> None:
    found = rows(shared_data / "fuzz_detection.jsonl")
    assert len(found) == 400
    for row in found:
        got = values(DETECTION, row["completion"], row["solution"])
        want = [row["ref_accuracy_iou_nosym"], row["ref_accuracy_confidence_nosym"], row["ref_format"]]
        assert got == pytest.approx(want, abs=1e-9), row["i"]


def test_every_fuzz_grounding_row_meets_the_formula(shared_data: Path) -> None:
    found = rows(shared_data / "fuzz_grounding.jsonl")
    assert len(found) == 200
    for row in found:
        (got,) = values(("accuracy_grounding",), row["completion"], row["solution"])
        want = row["torchvision_giou_plus_1_sorted_corners"] if row["kind"] == "ok" else 0.0
        assert got == pytest.approx(want, abs=1e-9), row["i"]


def test_detection_answers(shared_data: Path) -> None:
    found = {row["id"]: row for row in rows(shared_data / "answers.jsonl")}
    assert len(found) == 110 and set(golden_rules.DETECTION) <= set(found)
    for name, row in found.items():
        got = values(DETECTION, completion(row), row["solution"])
        reference = [row["ref_accuracy_iou_nosym"], row["ref_accuracy_confidence_nosym"], row["ref_format"]]
        if name in golden_rules.DETECTION:
            why, *ours = golden_rules.DETECTION[name]
            assert why in golden_rules.WHY
            assert got == pytest.approx(ours, abs=1e-9), name
            assert got != pytest.approx(reference, abs=1e-9), f"{name}: no difference to explain"
        else:
            assert got == pytest.approx(reference, abs=1e-9), name


@pytest.mark.parametrize(
    ("file", "reward", "table"),
    [
        ("grounding.jsonl", "accuracy_grounding", golden_rules.GROUNDING),
        ("classification.jsonl", "accuracy", golden_rules.CLASSIFICATION),
    ],
)
def test_grounding_and_class_answers(
    shared_data: Path, file: str, reward: str, table: dict[str, tuple[str, float]]
) -> None:
    found = {row["id"]: row for row in rows(shared_data / file)}
    assert set(table) <= set(found)
    for name, row in found.items():
        got, form = values((reward, "format"), row["completion"], row["solution"])
        if name in table:
            why, ours = table[name]
            assert why in golden_rules.WHY
            assert got == ours, name
            assert got != pytest.approx(row["ref_accuracy_nosym"], abs=1e-9), name
        else:
            assert got == pytest.approx(row["ref_accuracy_nosym"], abs=1e-9), name
        if "torchvision_giou_plus_1" in row and name not in table:
            assert got == pytest.approx(row["torchvision_giou_plus_1"], abs=1e-9), name
        trailing = file.startswith("class") and name == golden_rules.FORMAT_TRAILING_NEWLINE
        assert form == (1 if trailing else row["ref_format"]), name
