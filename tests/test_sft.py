"""SFT on GRPO's rows: the target alone in the loss, mixed rows, resuming, stopping at a metric."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_setup import log_without_times, write_rows
from transformers import AutoModelForImageTextToText, AutoProcessor

from virft import sft
from virft.checkpoint import read_manifest
from virft.data.training import load_rows, target_text, to_prompts
from virft.errors import UserError
from virft.metrics.rows import RowMetric
from virft.sft_trainer import TargetCollator, VisualSFTConfig


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with one image, none and two."""
    return write_rows(tmp_path_factory.mktemp("rows"), kinds=(1, 0, 2, 1))


def argv(model: Path, rows: Path, output: Path, **options: Any) -> list[str]:
    values = {
        "model_name_or_path": model,
        "dataset_name": rows,
        "output_dir": output,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "max_pixels": 12544,
        "use_cpu": "true",
        "disable_tqdm": "true",
        "logging_steps": 1,
    } | options
    return [part for k, v in values.items() for part in (f"--{k}", str(v))]


@pytest.mark.parametrize("family", ["tiny_qwen2_vl", "tiny_qwen2_5_vl"])
def test_the_loss_is_of_the_target_alone(family: str, rows: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    processor = AutoProcessor.from_pretrained(folder, min_pixels=3136, max_pixels=12544)
    prepared = to_prompts(load_rows(str(rows)))
    batch = TargetCollator(processor, target_text)([prepared[i] for i in range(4)])
    for row, labels, ids in zip(prepared, batch["labels"], batch["input_ids"], strict=False):
        taught = ids[labels != -100]
        assert processor.tokenizer.decode(taught) == target_text(row) + "<|im_end|>"
        prompt = processor.tokenizer.decode(ids[: (labels != -100).int().argmax()])
        assert prompt.endswith("<|im_start|>assistant\n") and prompt.count("<|im_start|>") == 2
        assert prompt.count("<|vision_start|>") == len(row["images"])
    assert batch["image_grid_thw"].shape[0] == 4
    # A batch of rows equals the rows one by one.
    model = AutoModelForImageTextToText.from_pretrained(folder)
    together = torch.nn.functional.cross_entropy(
        model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
        reduction="sum",
    )
    alone = 0.0
    for i in range(4):
        one = TargetCollator(processor, target_text)([prepared[i]])
        logits = model(**{k: v for k, v in one.items() if k != "labels"}).logits
        alone += torch.nn.functional.cross_entropy(logits[0, :-1], one["labels"][0, 1:], reduction="sum")
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


def test_remembered_rows_are_the_same(tiny_qwen2_vl: Path, rows: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiny_qwen2_vl, min_pixels=3136, max_pixels=12544)
    prepared = to_prompts(load_rows(str(rows)))
    prepared = prepared.add_column("row_number", list(range(len(prepared))))
    calls = []
    collator = TargetCollator(processor, lambda row: calls.append(1) or target_text(row), remember=2)
    first, second = (collator([prepared[i] for i in (0, 1, 2)]) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert len(calls) == 4  # two of three rows were kept


@pytest.mark.slow
def test_a_run_learns_and_a_resumed_one_is_the_same(rows: Path, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = {"save_steps": 1, "save_total_limit": 9}
    sft.main(argv(tiny_qwen2_vl, rows, whole, **options))
    history = json.loads((whole / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert history[-1]["loss"] < history[0]["loss"]
    manifest = read_manifest(whole)
    assert manifest.program == "sft" and manifest.space == "norm1000" and manifest.max_pixels == 12544
    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
    sft.main(argv(tiny_qwen2_vl, rows, cut, resume_from_checkpoint="auto", **options))
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(one[name], two[name]) for name in one)
    logs = [json.loads((f / "checkpoint-4" / "trainer_state.json").read_text()) for f in (whole, cut)]
    assert log_without_times(logs[0]) == log_without_times(logs[1])  # the tokens so far as well


@pytest.mark.slow
def test_training_ends_at_the_metric(
    rows: Path, tiny_qwen2_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.1, 0.6, 0.9])
    monkeypatch.setattr(
        RowMetric, "__call__", lambda self, held_out, replies: {"map": 0.0, "mean_iou": next(values)}
    )
    sft.main(
        argv(
            tiny_qwen2_vl,
            rows,
            tmp_path,
            max_steps=50,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
        )
        + ["--eval_dataset_name", str(rows), "--stop_metric", "mean_iou", "--stop_value", "0.55"]
        + ["--max_completion_length", "4"]
    )
    assert next(values) == 0.9  # two evaluations were enough
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"completion_column": "reply"}, "--completion_column reply: no such column"),
        ({"stop_metric": "mean_iou"}, "need each other"),
        ({"stop_metric": "mean_iou", "stop_value": 0.5}, "needs held-out rows"),
        ({"max_length": 512}, "--max_length would cut images"),
        ({"task": "detektion"}, "no metric for task 'detektion'"),
        ({"skip_long_prompts": "true"}, "needs --max_prompt_length"),
        ({"remember_rows": -1}, "--remember_rows -1 must be at least 0"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "--eval_strategy needs --eval_dataset_name"),
        ({"dataset_name": "absent.jsonl"}, "no such file"),
    ],
)
def test_bad_settings_are_refused(
    options: dict, words: str, rows: Path, tiny_qwen2_vl: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        sft.main(argv(tiny_qwen2_vl, rows, tmp_path / "out", **options))


def test_defaults(tmp_path: Path) -> None:
    args = VisualSFTConfig(output_dir=str(tmp_path), use_cpu=True)
    assert args.max_length is None and args.bf16 is False and args.gradient_checkpointing is False


def test_row_metrics_are_the_programs_numbers() -> None:
    size = {"image_sizes": [[100, 200]]}
    truth = "<answer>[{'Position': [0, 0, 500, 500], 'Confidence': 1}]</answer>"
    rows = [
        {"problem": "cat", "solution": truth, **size},
        {"problem": "cat", "solution": "<answer>No Objects</answer>", **size},
    ]
    metric = RowMetric(("detection",), "norm1000", 3136, 401408)
    perfect = metric(rows, [truth, "<answer>No Objects</answer>"])
    assert perfect == {
        "map": pytest.approx(1.0),
        "ap50": pytest.approx(1.0),
        "mean_iou": 1.0,
        "unreadable": 0.0,
    }
    half = metric(rows, ["<answer>[{'Position': [0, 0, 500, 200], 'Confidence': 1}]</answer>", "what"])
    assert half["mean_iou"] == pytest.approx(0.2) and half["unreadable"] == 0.5 and half["ap50"] == 0.0
    names = [{"problem": "p", "solution": "<answer>Rose Bush</answer>"}] * 2
    said = RowMetric(("classification",), "norm1000", 1, 2)(
        names, ["<answer>rose_bush</answer>", "<answer>rose</answer>"]
    )
    assert said == {"accuracy": 0.5, "unreadable": 0.0}
    ground = [{"problem": "p", "solution": "<answer>(0,0),(500,500)</answer>", **size}]
    assert (
        RowMetric(("grounding",), "norm1000", 3136, 401408)(ground, ["<answer>(0,0),(500,250)</answer>"])[
            "miou"
        ]
        == 0.5
    )
    both = RowMetric(("classification", "grounding"), "norm1000", 3136, 401408)
    mixed = both(
        [{**names[0], "task": "classification"}, {**ground[0], "task": "grounding"}],
        ["<answer>rose bush</answer>", "x"],
    )
    assert mixed["accuracy"] == 1.0 and mixed["miou"] == 0.0 and both.best == "accuracy"
    with pytest.raises(UserError, match="no metric for task"):
        RowMetric(("poetry",), "norm1000", 1, 2)
