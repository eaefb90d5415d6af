"""Held-out rows while training: which number is the best checkpoint told by, and does that one end up in
``output_dir``?"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_setup import flags, write_rows

from virft import grpo, sft
from virft.checkpoint import read_manifest
from virft.errors import UserError
from virft.held_out import choose_best
from virft.metrics.rows import LOWER_IS_BETTER, METRICS, RowMetric
from virft.trainer import VisualRFTConfig


@pytest.mark.parametrize(
    ("asked", "greater", "expected"),
    [
        (None, None, ("map", True)),
        ("eval_ap50", True, ("ap50", True)),
        ("unreadable", True, ("unreadable", False)),  # True is what transformers makes of an open choice
        ("mean_iou", False, ("mean_iou", False)),
    ],
)
def test_the_metric_has_its_own_direction(asked: Any, greater: Any, expected: tuple) -> None:
    args = SimpleNamespace(metric_for_best_model=asked, greater_is_better=greater)
    choose_best(args, METRICS["detection"], LOWER_IS_BETTER)
    assert (args.metric_for_best_model, args.greater_is_better) == expected


def test_a_metric_that_evaluation_does_not_give_is_refused() -> None:
    args = SimpleNamespace(metric_for_best_model="loss", greater_is_better=False)
    with pytest.raises(UserError, match="--metric_for_best_model loss: .* accuracy, unreadable"):
        choose_best(args, METRICS["classification"])


def test_the_configuration_leaves_the_metric_open(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    args = VisualRFTConfig(output_dir=str(tmp_path), use_cpu=True, **options)
    assert (args.metric_for_best_model, args.greater_is_better) == (None, None)
    args = VisualRFTConfig(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model="map", **options)
    assert (args.metric_for_best_model, args.greater_is_better) == ("map", True)
    with pytest.raises(UserError, match="--save_strategy best needs held-out rows"):
        VisualRFTConfig(output_dir=str(tmp_path), use_cpu=True, save_strategy="best")


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("program", ["grpo", "sft"])
def test_the_best_checkpoint_ends_up_in_the_output_folder(
    program: str, lora: bool, tiny_qwen2_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parameters, not the last ones; and where only every second evaluation comes with a checkpoint."""
    scores = iter([0.5, 0.1, 0.9, 0.2])
    monkeypatch.setattr(
        RowMetric, "__call__", lambda self, rows, replies: dict.fromkeys(self.names, next(scores))
    )
    rows = write_rows(tmp_path / "rows")
    options: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "use_peft": lora, "max_completion_length": 4}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset_name": rows}
    options |= {"load_best_model_at_end": "true", "learning_rate": 1e-2, "use_cpu": "true"}
    if program == "sft":
        options |= {"reward_funcs": None, "num_generations": None}
    out = tmp_path / "out"
    {"grpo": grpo, "sft": sft}[program].main(flags(tiny_qwen2_vl, rows, out, **options))
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    final, best, last = (load_file(f / name) for f in (out, out / "checkpoint-3", out / "checkpoint-4"))
    assert all(torch.equal(final[key], best[key]) for key in final)
    assert not all(torch.equal(final[key], last[key]) for key in final)
    assert read_manifest(out).step == 3
    state = json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_metric"] == 0.9 and state["best_global_step"] == 3
