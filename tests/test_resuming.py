"""Going on from a checkpoint with other flags or rows, and a full disk: one sentence, nothing half left."""

from __future__ import annotations

import json
import logging
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_setup import flags, log_without_times, write_rows

from virft import grpo, sft
from virft.checkpoint import last_checkpoint, read_manifest, saved_whole
from virft.errors import UserError, no_room
from virft.programs import run_program

RUN = {"max_steps": 2, "resume_from_checkpoint": "auto", "use_cpu": "true"}


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a full disk is to a program: its writes fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def whole(tiny_qwen2_vl: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("whole")
    grpo.main(flags(tiny_qwen2_vl, rows, folder, **RUN))
    return folder


@pytest.fixture
def cut(whole: Path, tmp_path: Path) -> Path:
    """The run, cut off after its first step."""
    shutil.copytree(whole / "checkpoint-1", tmp_path / "cut" / "checkpoint-1")
    return tmp_path / "cut"


@pytest.mark.slow
def test_other_flags_than_the_checkpoint_s(
    whole: Path, cut: Path, rows: Path, tiny_qwen2_vl: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other_rows = write_rows(cut.parent / "other", problem="Find the dog")
    for changed, words in (
        ({"seed": 7}, r"which rows come next \(--seed: 42 then, 7 now\); use the same, or start a new run"),
        ({"dataset_name": other_rows}, r"trained on other rows \(8 of .*rows.json, hash .* then, 8 of"),
        ({"per_device_train_batch_size": 1}, "prompts a step: 2 then, 1 now"),
        ({"num_generations": 2}, "--num_generations: 4 then, 2 now"),
        ({"num_iterations": 2}, "--num_iterations: 1 then, 2 now"),
        ({"use_peft": "true"}, "holds a whole model and --use_peft is on"),
    ):
        with pytest.raises(UserError, match=words):
            grpo.main(flags(tiny_qwen2_vl, rows, cut, **RUN | changed))
    as_sft = ["--model_name_or_path", tiny_qwen2_vl, "--dataset_name", rows, "--output_dir", cut]
    as_sft += ["--resume_from_checkpoint", "auto", "--use_cpu", "true", "--max_pixels", 12544]
    with pytest.raises(UserError, match=r"is of grpo\.py, and this is sft\.py"):
        sft.main([str(part) for part in as_sft])
    assert [path.name for path in cut.iterdir()] == ["checkpoint-1"]
    # The same prompts a step in other pieces, and what only changes how is learnt, may differ.
    with caplog.at_level(logging.WARNING, "virft"):
        grpo.main(flags(tiny_qwen2_vl, rows, cut, **RUN, completions_per_forward=4, temperature=0.9))
    assert "with other settings (temperature 1.0 then, 0.9 now)" in caplog.text
    assert read_manifest(cut / "checkpoint-2").step == 2


@pytest.mark.slow
def test_a_checkpoint_within_a_generation_keeps_its_pieces(
    rows: Path, tiny_qwen2_vl: Path, tmp_path: Path
) -> None:
    run = RUN | {"num_iterations": 2, "max_steps": 1}
    grpo.main(flags(tiny_qwen2_vl, rows, tmp_path, **run))
    with pytest.raises(UserError, match="within a generation, .* 1 processes with 8 completions at once"):
        grpo.main(flags(tiny_qwen2_vl, rows, tmp_path, **run | {"max_steps": 2}, completions_per_forward=4))


@pytest.mark.slow
def test_other_processes_and_stages_of_zero(cut: Path, rows: Path, tiny_qwen2_vl: Path) -> None:
    """As the manifest of a run on several processes states them."""
    path = cut / "checkpoint-1" / "virft.json"
    manifest = json.loads(path.read_text())
    assert manifest["config"]["world_size"] == 1 and manifest["config"]["zero_stage"] is None
    for changed, words in (
        ({"world_size": 2}, "prompts a step: 4 then, 2 now"),
        (
            {"zero_stage": 3},
            "an optimizer of ZeRO-3 .*, which a run without DeepSpeed cannot read",
        ),
    ):
        path.write_text(json.dumps(manifest | {"config": manifest["config"] | changed}))
        with pytest.raises(UserError, match=words):
            grpo.main(flags(tiny_qwen2_vl, rows, cut, **RUN))


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_checkpoint(
    whole: Path, cut: Path, rows: Path, tiny_qwen2_vl: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = flags(tiny_qwen2_vl, rows, cut, **RUN)
    # The model's file is 1.7 MB and the optimizer's 3.4: one fails in safetensors, the other in PyTorch.
    for size in (1_000_000, 2_000_000):
        with files_no_larger_than(size), pytest.raises(SystemExit) as left:
            run_program(lambda: grpo.main(argv))
        assert left.value.code == 2
        said = capfd.readouterr().err
        assert said.count("checkpoint-2: no room on the disk") == 1 and "Traceback" not in said
        assert [path.name for path in cut.glob("checkpoint-*")] == ["checkpoint-1"]
        assert last_checkpoint(cut) == (cut / "checkpoint-1", [])
    grpo.main(argv)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(one[name], two[name]) for name in one)
    logs = [json.loads((f / "checkpoint-2" / "trainer_state.json").read_text()) for f in (whole, cut)]
    assert log_without_times(logs[0]) == log_without_times(logs[1])


def test_a_full_disk_takes_only_what_was_being_saved(tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text("{}")
    (tmp_path / "checkpoint-1").mkdir()

    def save() -> None:
        (tmp_path / "small.json").write_text("{}")
        (tmp_path / "model.bin").write_bytes(bytes(2000))

    with files_no_larger_than(1000), pytest.raises(UserError, match="no room on the disk.*: free some"):  # noqa: SIM117
        with saved_whole(tmp_path, "free some"):
            save()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "kept.json"]
    with files_no_larger_than(1000), pytest.raises(UserError), saved_whole(tmp_path / "new", ""):
        (tmp_path / "new" / "global_step1").mkdir(parents=True)
        (tmp_path / "new" / "global_step1" / "optimizer.pt").write_bytes(bytes(2000))
    assert not (tmp_path / "new").exists()
    with pytest.raises(RuntimeError, match="another"), saved_whole(tmp_path, ""):
        save()
        raise RuntimeError("another fault")
    assert (tmp_path / "model.bin").is_file()  # only a full disk is mended so


def test_errors_of_files_are_a_line_and_a_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fill() -> None:
        (tmp_path / "full").write_bytes(bytes(2000))

    def forbidden() -> None:
        raise PermissionError(13, "Permission denied", "secret.json")

    for main, words in ((fill, "File too large; make room"), (forbidden, "secret.json: Permission denied")):
        with files_no_larger_than(1000), pytest.raises(SystemExit) as left:
            run_program(main)
        assert left.value.code == 2
        assert words in (said := capsys.readouterr().err) and said.startswith("error: ")

    def bug() -> None:
        raise FileNotFoundError(2, "No such file", "internal")

    with pytest.raises(FileNotFoundError):  # a fault of the program keeps its traceback
        run_program(bug)
    assert no_room(RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0"))
    assert not no_room(RuntimeError("CUDA error")) and not no_room(bug_error())


def bug_error() -> Any:
    return FileNotFoundError(2, "No such file", "internal")
