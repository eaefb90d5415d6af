"""The real program under torchrun with two processes on a CPU: DDP, ZeRO-2, ZeRO-3."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_setup import ROOT, flags, log_without_times, torchrun, write_rows

pytestmark = pytest.mark.slow

STAGES = [pytest.param(None, id="ddp"), pytest.param(2, id="zero2"), pytest.param(3, id="zero3")]


@pytest.fixture(scope="module")
def mixed_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with one image, none, and two."""
    return write_rows(tmp_path_factory.mktemp("mixed"), kinds=(1, 0, 2, 0), count=12)


def state(folder: Path) -> dict:
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("zero", STAGES)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    zero: int | None, tiny_qwen2_vl: Path, mixed_rows: Path, tmp_path: Path
) -> None:
    """Text-only rows, one image and two in one set: some forwards on some ranks have no image at all."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = {"save_total_limit": "10", "num_iterations": 2, "completions_per_forward": 4}
    options |= {"eval_strategy": "steps", "eval_steps": 3, "eval_dataset_name": mixed_rows}
    done = torchrun(flags(tiny_qwen2_vl, mixed_rows, whole, **options), zero)
    assert done.returncode == 0, done.stderr[-3000:]
    # A kill leaves whole checkpoints and perhaps one that was being written.
    shutil.copytree(whole / "checkpoint-1", cut / "checkpoint-1")
    (cut / "checkpoint-2").mkdir()
    shutil.copy(whole / "checkpoint-2" / "model.safetensors", cut / "checkpoint-2")
    done = torchrun(flags(tiny_qwen2_vl, mixed_rows, cut, resume_from_checkpoint="auto", **options), zero)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checkpoint-2 was cut off" in done.stderr
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(one[name], two[name]) for name in one)
    before = load_file(tiny_qwen2_vl / "model.safetensors")
    assert not torch.equal(before["lm_head.weight"], one["lm_head.weight"])
    logs = [log_without_times(state(folder / "checkpoint-3")) for folder in (whole, cut)]
    assert logs[0] == logs[1]
    # Shares of reasons are true over both ranks, though each has a code of its own.
    shares = {line[key] for line in logs[0] for key in line if key.startswith("reasons/letters/rank")}
    assert shares == {0.5}
    assert logs[0][-1]["eval_unreadable"] == 1.0  # of all twelve rows, answered on two ranks
    assert (cut / "virft.json").is_file()


@pytest.fixture(scope="module")
def image_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("images"), kinds=(1, 2), count=12)


def test_fsdp_trains_as_ddp_does_and_goes_on_where_it_was(
    tiny_qwen2_vl: Path, image_rows: Path, tmp_path: Path
) -> None:
    options = {
        "eval_strategy": "steps",
        "eval_steps": 3,
        "eval_dataset_name": image_rows,
        "use_peft": "true",
        "lora_dropout": 0,
        "num_iterations": 2,
    }
    logs = {}
    for name, more in (("ddp", {}), ("fsdp", {"fsdp": "full_shard"}), ("cut", {"fsdp": "full_shard"})):
        if name == "cut":
            shutil.copytree(tmp_path / "fsdp" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
            more["resume_from_checkpoint"] = "auto"
        done = torchrun(flags(tiny_qwen2_vl, image_rows, tmp_path / name, **options, **more))
        assert done.returncode == 0, done.stderr[-3000:]
        logs[name] = log_without_times(state(tmp_path / name / "checkpoint-3"))
    assert (tmp_path / "fsdp" / "checkpoint-2" / "pytorch_model_fsdp.bin").is_file(), "it was not sharded"
    for plain, sharded in zip(logs["ddp"], logs["fsdp"], strict=True):
        for name in plain.keys() & {"loss", "grad_norm", "reward", "eval_mean_iou"}:
            assert sharded[name] == pytest.approx(plain[name], rel=1e-4, abs=1e-6)
    assert logs["fsdp"] == logs["cut"]
    whole, cut = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("fsdp", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


LORA = {"use_peft": "true"}
MOVED = {"sync_ref_model": "true", "ref_model_sync_steps": 1, "beta": 0.1}
FROZEN = {"freeze_vision": "true"}


@pytest.mark.parametrize("options", [LORA, MOVED, FROZEN], ids=["lora", "moved reference", "frozen vision"])
def test_a_part_that_learns_or_a_reference_that_moves_under_zero3(
    options: dict, tiny_qwen2_vl: Path, mixed_rows: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = options | {"resume_from_checkpoint": "auto", "save_total_limit": 10}
    done = torchrun(flags(tiny_qwen2_vl, mixed_rows, whole, **options), 3)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    done = torchrun(flags(tiny_qwen2_vl, mixed_rows, cut, **options), 3)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [log_without_times(state(folder / "checkpoint-3")) for folder in (whole, cut)]
    assert logs[0] == logs[1]
    one, two = (load_file(next(folder.glob("*.safetensors"))) for folder in (whole, cut))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_mixed_rows_sampled_with_weights_that_stay_sharded(
    tiny_qwen2_vl: Path, mixed_rows: Path, tmp_path: Path
) -> None:
    """A rank without images must run the vision tower in its prefill too, or the others wait for it."""
    losses = []
    for gathered in ("true", "false"):
        arguments = flags(tiny_qwen2_vl, mixed_rows, tmp_path / gathered, ds3_gather_for_generation=gathered)
        done = torchrun(arguments, 3)
        assert done.returncode == 0, done.stderr[-3000:]
        log = log_without_times(state(tmp_path / gathered / "checkpoint-3"))
        losses.append([(line["loss"], line["reward"]) for line in log])
    assert losses[0] == [pytest.approx(line, rel=1e-4, abs=1e-6) for line in losses[1]]


def test_sft_of_mixed_rows_under_zero3(tiny_qwen2_vl: Path, mixed_rows: Path, tmp_path: Path) -> None:
    """And the best checkpoint is what ends up in the output folder: here the first, nothing being read."""
    arguments = [
        "--model_name_or_path",
        tiny_qwen2_vl,
        "--dataset_name",
        mixed_rows,
        "--output_dir",
        tmp_path,
    ]
    arguments += ["--max_steps", 4, "--per_device_train_batch_size", 1, "--learning_rate", 1e-3]
    arguments += ["--max_pixels", 12544, "--save_steps", 2, "--logging_steps", 1]
    arguments += ["--eval_strategy", "steps", "--eval_steps", 2, "--eval_dataset_name", mixed_rows]
    arguments += ["--load_best_model_at_end", "true", "--max_completion_length", 4]
    done = torchrun([str(argument) for argument in arguments], 3, name="sft.py")
    assert done.returncode == 0, done.stderr[-3000:]
    final, best, last = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("", "checkpoint-2", "checkpoint-4")
    )
    assert all(torch.equal(final[name], best[name]) for name in final)
    assert not torch.equal(final["lm_head.weight"], last["lm_head.weight"])
    assert json.loads((tmp_path / "virft.json").read_text())["step"] == 2


def test_an_exception_on_one_rank_ends_the_run(tiny_qwen2_vl: Path, mixed_rows: Path, tmp_path: Path) -> None:
    # Ranks that waited for one another would do so for half an hour; torchrun() here gives up before.
    done = torchrun(flags(tiny_qwen2_vl, mixed_rows, tmp_path / "out"), 3, FAIL_RANK="1")
    assert done.returncode != 0
    assert "this rank fails" in done.stderr


def test_sigterm_saves_and_exits(tiny_qwen2_vl: Path, mixed_rows: Path, tmp_path: Path) -> None:
    arguments = flags(
        tiny_qwen2_vl, mixed_rows, tmp_path, max_steps=100000, save_steps=100000, num_train_epochs=100000
    )
    command = [sys.executable, str(ROOT / "src/virft/grpo.py"), *arguments, "--use_cpu", "true"]
    with open(tmp_path / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
        deadline = time.monotonic() + 300
        while "'loss'" not in (tmp_path / "log.txt").read_text() and time.monotonic() < deadline:
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=300)
    text = (tmp_path / "log.txt").read_text()
    assert code == 128 + signal.SIGTERM, text[-2000:]
    assert "go on with --resume_from_checkpoint auto" in text
    (saved,) = tmp_path.glob("checkpoint-*")
    assert (saved / "virft.json").is_file()
    assert not (tmp_path / "model.safetensors").exists()  # the run is not finished
