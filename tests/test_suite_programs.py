"""The LVIS, classification and LISA programs from their command lines, with a tiny model."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import suite_cases as cases

from virft.evaluate.__main__ import SUITES
from virft.predictions import load_meta

PROGRAMS = (
    "lvis_evaluation/Qwen2_VL_lvis_infere.py",
    "lvis_evaluation/lvis_evaluation.py",
    "classification/Qwen2_VL_classification_infere.py",
    "classification/classification_evaluation.py",
    "lisa_evaluation/Qwen2_VL_lisa_infere.py",
    "lisa_evaluation/lisa_evaluation.py",
    "lisa_evaluation/box2mask.py",
    "lisa_evaluation/mask_iou.py",
)
FAST = ("--device", "cpu", "--processes", "1", "--max_new_tokens", "4")


@pytest.fixture
def program(root, monkeypatch):
    """Run a program of the repository, or ``virft.evaluate`` by its suite, in this process."""

    def run(name: str, *flags: str) -> None:
        if name in SUITES:
            monkeypatch.setattr(sys, "argv", ["virft.evaluate", name, *flags])
            runpy.run_module("virft.evaluate", run_name="__main__")
        else:
            monkeypatch.setattr(sys, "argv", [name, *flags])
            runpy.run_path(str(root / name), run_name="__main__")

    return run


@pytest.mark.parametrize("name", [*PROGRAMS, *SUITES])
def test_help_names_every_flag_with_its_meaning(program, name, capsys):
    with pytest.raises(SystemExit) as ended:
        program(name, "--help")
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--output" in shown and "(default: " in shown


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        (PROGRAMS[0], ("--annotations", "gone.json"), "gone.json: no such file"),
        (PROGRAMS[1], ("--annotations", "gone.json"), "gone.json: no such file"),
        (PROGRAMS[2], ("--dataset", "gone"), "what --dataset gone shows is not known"),
        (PROGRAMS[3], ("--predictions", "gone.jsonl"), "gone.jsonl: no such file"),
        (PROGRAMS[4], ("--annotations", "gone"), "gone: no such folder"),
        (PROGRAMS[4], ("--truth", "best"), "--truth 'best' is unknown"),
        (PROGRAMS[4], ("--annotation_s", "x"), "unknown flag --annotation_s; did you mean --annotations?"),
        (PROGRAMS[0], ("--batch_size", "many"), "invalid int value: 'many'; --help lists all"),
        ("coco", ("--candidates", "ground_thruth"), "no such file, nor all or ground_truth"),
        (PROGRAMS[1], ("stray",), "'stray' belongs to no flag"),
        ("lisa", ("--sam_model", "/nowhere/sam"), "SAM model /nowhere/sam: no such folder"),
        (PROGRAMS[5], ("--predictions", "gone.jsonl"), "gone.jsonl: no such file"),
        (PROGRAMS[6], ("--predictions", "gone.jsonl"), "gone.jsonl: no such file"),
        (PROGRAMS[7], ("--masks", "gone.jsonl"), "gone.jsonl: no such file"),
    ],
)
def test_what_only_the_user_can_mend_is_one_sentence(program, tiny_qwen2_vl, name, flags, sentence, capsys):
    model = ("--model_path", str(tiny_qwen2_vl)) if "infere" in name or name == "coco" else ()
    with pytest.raises(SystemExit) as ended:
        program(name, *model, *flags)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: ") and said.count("\n") == 1 and sentence in said


def test_lvis_asks_and_scores(program, tiny_qwen2_vl, tmp_path, capsys):
    annotations, images = cases.lvis_set(tmp_path)
    output = tmp_path / "p.jsonl"
    ask = (
        "--model_path",
        str(tiny_qwen2_vl),
        "--annotations",
        str(annotations),
        "--image_folder",
        str(images),
    )
    program(PROGRAMS[0], *ask, "--categories", "spring roll", "cup", "--output", str(output), *FAST)
    meta = load_meta(output)
    assert (meta["suite"], meta["categories"], meta["questions"]) == ("lvis", ["egg_roll", "cup"], 4)
    capsys.readouterr()
    scores = tmp_path / "s.json"
    program(
        PROGRAMS[1], "--annotations", str(annotations), "--predictions", str(output), "--output", str(scores)
    )
    assert "APr" in capsys.readouterr().out
    numbers = json.loads(scores.read_text())
    assert (numbers["APr"], numbers["questions"], numbers["objects"]) == (0.0, 4, 2)
    assert numbers["protocol"]["inference"]["fingerprint"] == meta["fingerprint"]


def test_a_coordinate_space_against_the_model_s_own_is_said_and_stated(
    program, tiny_qwen2_vl, tmp_path, capsys
):
    annotations, images = cases.lvis_set(tmp_path)
    output = tmp_path / "p.jsonl"
    where = ("--annotations", str(annotations), "--image_folder", str(images), "--output", str(output))
    space = ("--coordinates", "abs_resized", "--categories", "cup")
    program(PROGRAMS[0], "--model_path", str(tiny_qwen2_vl), *where, *space, *FAST)
    assert "by its own account this model writes norm1000" in capsys.readouterr().out
    meta = load_meta(output)
    assert (meta["coordinates"], meta["checkpoint_coordinates"]) == ("abs_resized", "norm1000")


def test_lvis_refuses_coco_annotations(program, tmp_path, capsys):
    annotations, _ = cases.lvis_set(tmp_path)
    content = json.loads(annotations.read_text())
    del content["categories"][0]["frequency"]
    annotations.write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        program(PROGRAMS[1], "--annotations", str(annotations), "--predictions", "p.jsonl")
    assert "no frequency" in capsys.readouterr().err


def test_lvis_replies_to_ap(program, tmp_path):
    annotations, _ = cases.lvis_set(tmp_path)
    right = "<answer>[{'Position': [166.667, 250, 500, 750], 'Confidence': 0.9}]</answer>"
    lines = [
        {
            "id": f"{image}/{category}",
            "reply": right if (image, category) == (1, 7) else "<answer>No Objects</answer>",
            "space": "norm1000",
            "image_size": cases.SIZE,
            "meta": {"image_id": image, "category_id": category},
        }
        for image in (1, 2)
        for category in (7, 9)
    ]
    predictions = cases.write_predictions(tmp_path / "p.jsonl", lines)
    scores = tmp_path / "s.json"
    flags = ("--annotations", str(annotations), "--predictions", str(predictions), "--output", str(scores))
    program(PROGRAMS[1], *flags)
    numbers = json.loads(scores.read_text())
    # One of two objects found, nothing wrong: precision 1 up to recall 0.5, that is 51 of 101 points.
    assert numbers["AP"] == numbers["APr"] == pytest.approx(51 / 101)
    assert numbers["AR@300"] == pytest.approx(0.5)
    assert numbers["per_category"]["egg_roll"]["objects"] == 2


def test_classification_in_one_command(program, tiny_qwen2_5_vl, tmp_path, capsys):
    folder, output = cases.class_folder(tmp_path / "set"), tmp_path / "p.jsonl"
    flags = ("--model_path", str(tiny_qwen2_5_vl), "--dataset", str(folder), "--subject", "car")
    program("classification", *flags, "--output", str(output), *FAST)
    shown = capsys.readouterr().out
    assert "accuracy, paper rule" in shown
    numbers = json.loads((tmp_path / "p.scores.json").read_text())
    assert numbers["images"] == 4 and sum(numbers["reasons"].values()) == 4
    program(PROGRAMS[3], "--predictions", str(output))
    assert "accuracy, paper rule" in capsys.readouterr().out


def test_lisa_in_one_command_with_masks(program, tiny_qwen2_vl, tmp_path, capsys):
    split, output = cases.lisa_split(tmp_path / "ReasonSeg" / "val"), tmp_path / "p.jsonl"
    sam = cases.tiny_sam(tmp_path / "sam")
    flags = ("--model_path", str(tiny_qwen2_vl), "--annotations", str(split), "--instructions", "all")
    program(PROGRAMS[4], *flags, "--sam_model", str(sam), "--output", str(output), *FAST)
    shown = capsys.readouterr().out
    assert "mIoU" in shown and "gIoU" in shown
    numbers = json.loads((tmp_path / "p.scores.json").read_text())
    assert numbers["questions"] == 4
    masks = tmp_path / "p.masks.jsonl"
    assert len(masks.read_text().splitlines()) == 4
    program(PROGRAMS[5], "--annotations", str(split), "--predictions", str(output), "--truth", "first_shape")
    assert "truth: first_shape" in capsys.readouterr().out
    again = tmp_path / "again.jsonl"
    files = ("--annotations", str(split), "--predictions", str(output), "--output", str(again))
    program(PROGRAMS[6], *files, "--sam_model", str(sam), "--device", "cpu")
    assert again.read_text() == masks.read_text()
    scores = tmp_path / "m.json"
    program(PROGRAMS[7], "--annotations", str(split), "--masks", str(again), "--output", str(scores))
    assert Path(scores).is_file() and "cIoU" in capsys.readouterr().out


def test_a_scorer_refuses_before_it_counts(program, tmp_path, capsys):
    annotations, _ = cases.lvis_set(tmp_path)
    truth = json.loads(annotations.read_text())
    truth["annotations"][0]["bbox"] = [1, 2, "wide"]
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(truth))
    line = {"id": "1/7", "reply": "No Objects", "space": "norm1000"}
    line["meta"] = {"image_id": 1, "category_id": 7, "category": "egg_roll"}
    replies = cases.write_predictions(tmp_path / "p.jsonl", [line])
    nothing = cases.write_predictions(tmp_path / "none.jsonl", [])
    split = cases.lisa_split(tmp_path / "split")
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"id": "a#0", "rle": null}\n{"id":')
    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps({"id": "a#0", "rle": {"size": [3, 3], "counts": "zz"}}) + "\n")
    lvis = ("--annotations", str(annotations), "--predictions", str(replies))
    lisa = ("--annotations", str(split), "--masks")
    for name, flags, sentence in (
        (PROGRAMS[1], (*lvis, "--missing_score", "nan"), "--missing_score must be between 0 and 1"),
        (PROGRAMS[1], (*lvis, "--output", str(tmp_path)), "is a folder; name a file"),
        (PROGRAMS[1], (*lvis, "--coco_results", str(replies / "x")), "is a file; name another place"),
        (PROGRAMS[1], (*lvis[:3], str(nothing)), "no reply in it"),
        (PROGRAMS[1], ("--annotations", str(broken), *lvis[2:]), "is not four numbers x, y, width, height"),
        (
            PROGRAMS[3],
            ("--predictions", str(replies), "--confusions", "-1"),
            "--confusions must be at least 0",
        ),
        (PROGRAMS[7], (*lisa, str(nothing)), "none.jsonl: empty"),
        (PROGRAMS[7], (*lisa, str(torn)), "cut off in its last line"),
        (PROGRAMS[7], (*lisa, str(odd)), "the mask of 'a#0' cannot be read"),
        (PROGRAMS[6], ("--device", "cpuu"), "--device 'cpuu' is no device"),
    ):
        with pytest.raises(SystemExit) as ended:
            program(name, *flags)
        said = capsys.readouterr().err
        assert ended.value.code == 2, flags
        assert said.startswith("error: ") and said.count("\n") == 1 and sentence in said


def test_a_sam_that_is_none_is_refused_before_the_questions(program, tiny_qwen2_vl, tmp_path, capsys):
    flags = ("--model_path", str(tiny_qwen2_vl), "--annotations", str(cases.lisa_split(tmp_path / "split")))
    output = tmp_path / "out" / "p.jsonl"
    with pytest.raises(SystemExit):
        program("lisa", *flags, "--sam_model", str(tiny_qwen2_vl), "--output", str(output))
    assert "is a 'qwen2_vl' model, which makes no masks from boxes" in capsys.readouterr().err
    assert not output.parent.exists()
