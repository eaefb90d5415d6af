"""The suites' notebooks and the LISA demo run as they stand, with other settings, on tiny data."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
import suite_cases as cases
from nbclient import NotebookClient

NOTEBOOKS = (
    "lvis_evaluation/lvis_evaluation.ipynb",
    "classification/evaluation.ipynb",
    "lisa_evaluation/evaluation.ipynb",
    "demo/lisa_demo.ipynb",
)


def settings(name: str, model: Path, folder: Path) -> dict[str, object]:
    """What stands in a notebook's first code cell, for tiny data."""
    shared = {"model_path": str(model), "max_new_tokens": 4}
    if name.startswith("demo"):
        return {**shared, "image": str(cases.image(folder / "a.png"))}
    shared |= {"predictions": str(folder / "predictions.jsonl"), "batch_size": 4}
    if name.startswith("lvis"):
        annotations, images = cases.lvis_set(folder)
        return {
            **shared,
            "annotations": str(annotations),
            "image_folder": str(images),
            "categories": ["all"],
        }
    if name.startswith("classification"):
        return {**shared, "dataset": str(cases.class_folder(folder / "set")), "subject": "car"}
    return {
        **shared,
        "annotations": str(cases.lisa_split(folder / "split")),
        "sam_model": str(cases.tiny_sam(folder / "sam")),
        "masks": str(folder / "masks.jsonl"),
    }


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_thin_and_stripped(root, name):
    notebook = nbformat.read(root / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].metadata["tags"] == ["parameters"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert not any(line.startswith(("def ", "class ")) for cell in code for line in cell.source.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(root, tiny_qwen2_vl, tmp_path, name):
    notebook = nbformat.read(root / name, as_version=4)
    parameters = next(cell for cell in notebook.cells if cell.cell_type == "code")
    changed = settings(name, tiny_qwen2_vl, tmp_path)
    assert all(f"{key} = " in parameters.source for key in changed), "a setting that the notebook lacks"
    parameters.source += "\n" + "\n".join(f"{key} = {value!r}" for key, value in changed.items())
    folder = {"metadata": {"path": str((root / name).parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 1
