"""The COCO programs and notebook as a user starts them, on tiny data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from virft.data import digits
from virft.evaluate.candidates import present
from virft.types import Prediction

NOTEBOOK = "coco_evaluation/evaluation.ipynb"
PROGRAMS = ("Qwen2_VL_coco_infere.py", "coco_evaluation.py", "make_candidates.py")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six digit scenes with COCO annotations at test.json."""
    folder = tmp_path_factory.mktemp("scenes") / "digits"
    return digits.write(folder, {"test": digits.Scenes(count=6, pool="heldout", classes=(1, 2, 3))})


def run(root: Path, folder: Path, *arguments: str) -> str:
    """A command's standard output; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def asking(scenes: Path, model: Path) -> list[str]:
    """The flags of every program that asks."""
    data = ["--annotations", str(scenes / "test.json"), "--image_folder", str(scenes)]
    return [*data, "--model_path", str(model), "--device", "cpu"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_names_every_flag_with_its_meaning(root: Path, tmp_path: Path, program: str) -> None:
    said = run(root, tmp_path, str(root / "coco_evaluation" / program), "--help")
    assert "--annotations" in said
    assert said.count("(default:") == said.count("\n  --")


def test_the_one_entry_lists_its_suites(root: Path, tmp_path: Path) -> None:
    said = run(root, tmp_path, "-m", "virft.evaluate", "--help")
    assert "coco" in said
    done = subprocess.run(
        [sys.executable, "-m", "virft.evaluate", "cocoa"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'cocoa' is no suite; choose one of coco")


@pytest.mark.slow
def test_candidates_then_ask_then_score(
    root: Path, scenes: Path, tiny_qwen2_vl: Path, tmp_path: Path
) -> None:
    programs = root / "coco_evaluation"
    said = run(
        root,
        tmp_path,
        str(programs / "make_candidates.py"),
        *asking(scenes, tiny_qwen2_vl),
        *("--output", "presence.jsonl", "--candidates_file", "asked.json", "--max_new_tokens", "2"),
    )
    assert "next: python coco_evaluation/Qwen2_VL_coco_infere.py --candidates asked.json" in said
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert sorted(asked) == ["1", "2", "3", "4", "5", "6"]
    # What random weights say is neither yes nor no, so every pair is a candidate; leave out some.
    (tmp_path / "asked.json").write_text(json.dumps({"1": ["one", "two"], "2": ["two"]}))
    said = run(
        root,
        tmp_path,
        str(programs / "Qwen2_VL_coco_infere.py"),
        *asking(scenes, tiny_qwen2_vl),
        *("--candidates", "asked.json", "--output", "p.jsonl", "--max_new_tokens", "4"),
    )
    assert "3 replies in p.jsonl" in said
    meta = json.loads((tmp_path / "p.meta.json").read_text())
    assert meta["candidates"] == "asked.json"
    assert len(meta["candidates_sha256"]) == 64
    assert meta["candidates_protocol"]["suite"] == "candidates"
    command = said.split("next: python coco_evaluation/coco_evaluation.py ")[1].split()
    said = run(root, tmp_path, str(programs / "coco_evaluation.py"), *command)
    assert "mean IoU" in said
    assert "unreadable replies 3" in said


@pytest.mark.slow
def test_the_one_entry_asks_and_scores(
    root: Path, scenes: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    flags = ["--output", "p.jsonl", "--max_new_tokens", "4", "--max_images", "2"]
    said = run(root, tmp_path, "-m", "virft.evaluate", "coco", *asking(scenes, tiny_qwen2_5_vl), *flags)
    assert "2 objects of 3 categories" in said
    scores = json.loads((tmp_path / "p.scores.json").read_text())
    assert scores["protocol"]["inference"]["coordinates"] == "abs_resized"
    assert scores["questions"] == 6


@pytest.mark.slow
def test_benchmark_gives_equal_replies(root: Path, tmp_path: Path) -> None:
    few = ["--images", "1", "--questions", "2", "--reply", "3", "--rounds", "1", "--threads", "1"]
    said = run(root, tmp_path, str(root / "benchmarks/evaluation.py"), *few, "--output", "figures.json")
    assert "questions/s" in said
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["equal_replies"] == {"batched": 1.0, "engine": 1.0}


def test_unreadable_presence_counts_as_present() -> None:
    replies = {"cat": "Yes.", "dog": "no", "bus": "<answer> NO </answer>", "bed": "perhaps", "cup": ""}
    meta = [{"image_id": 7, "category_id": i, "category": name} for i, name in enumerate(replies)]
    predictions = [
        Prediction(name, text, "norm1000", meta=m)
        for (name, text), m in zip(replies.items(), meta, strict=True)
    ]
    assert present(predictions) == {"7": ["cat", "bed", "cup"]}


def test_notebook_is_thin_and_stripped(root: Path) -> None:
    notebook = nbformat.read(root / NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].metadata["tags"] == ["parameters"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    lines = [line for cell in code for line in cell.source.splitlines()]
    assert not [line for line in lines if line.lstrip().startswith(("def ", "class "))]


@pytest.mark.slow
def test_notebook_runs(root: Path, scenes: Path, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(root / NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    changed = {
        "model_path": str(tiny_qwen2_vl),
        "annotations": str(scenes / "test.json"),
        "image_folder": str(scenes),
        "categories": ["all"],
        "predictions": str(tmp_path / "p.jsonl"),
        "max_new_tokens": 4,
    }
    assert all(f"{name} = " in code[0].source for name in changed)
    code[0].source += "\n" + "\n".join(f"{name} = {value!r}" for name, value in changed.items())
    place = {"metadata": {"path": str((root / NOTEBOOK).parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    kinds = [kind for cell in code for output in cell.outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 2
