"""Every launcher: bash reads it, what it names exists, its flags mean what the file says, and one runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_setup import ROOT, write_rows

from virft.grpo import RewardArguments
from virft.settings import ModelArguments, RowArguments, parse_flags
from virft.trainer import VisualRFTConfig

LAUNCHERS = {
    # name: (task, completions a group, gradient checkpointing)
    "2B_base65cate_6k.sh": ("detection", 8, False),
    "7B_base65cate_6k.sh": ("detection", 4, False),
    "2B_aircraft_4_shot.sh": ("classification", 8, False),
    "2B_lisa_grounding.sh": ("grounding", 8, True),
    "example.sh": ("detection", 8, True),
}
RECORD = '#!/usr/bin/env bash\nprintf "%s\\n" "$PWD" "$@" > "$RECORD"\n'


def launch(name: str, folder: Path, *extra: str, **environment: str) -> list[str]:
    """Run a launcher with a torchrun that writes down its folder and arguments."""
    folder.mkdir(exist_ok=True)
    (folder / "torchrun").write_text(RECORD)
    (folder / "torchrun").chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    settings = os.environ | {"PATH": path, "VIRTUAL_ENV": "1", "RECORD": str(folder / "args")} | environment
    # From another folder: a launcher finds the project itself.
    subprocess.run(["bash", str(ROOT / "scripts" / name), *extra], cwd=folder, env=settings, check=True)
    return (folder / "args").read_text().splitlines()


@pytest.mark.parametrize("script", sorted(ROOT.glob("scripts/*.sh")), ids=lambda p: p.name)
def test_bash_reads_it(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


@pytest.mark.parametrize("name", LAUNCHERS)
def test_flags_parse_and_mean_what_the_table_says(name: str, tmp_path: Path) -> None:
    folder, *arguments = launch(name, tmp_path, "--bf16", "false", "--use_cpu", "true")
    assert Path(folder) == ROOT
    program = arguments.index("src/virft/grpo.py")
    assert (ROOT / arguments[program]).is_file()
    flags = arguments[program + 1 :]
    if "--deepspeed" in flags:
        place = flags.index("--deepspeed")
        assert (ROOT / flags[place + 1]).is_file()
        del flags[place : place + 2]  # parsing it starts DeepSpeed, which wants torchrun
    rows, rewards, model, args = parse_flags(
        (RowArguments, RewardArguments, ModelArguments, VisualRFTConfig), flags
    )
    task, group, checkpointing = LAUNCHERS[name]
    assert rewards.task == [task]
    assert args.num_generations == group
    assert args.prompts_per_device == 1
    assert args.gradient_checkpointing is checkpointing
    assert (args.max_pixels, args.resume_from_checkpoint) == (401408, "auto")
    assert model.model_name_or_path.startswith("Qwen/Qwen2-VL-")
    assert rows.dataset_name


def test_the_environment_overrides_the_variables(tmp_path: Path) -> None:
    recorded = launch(
        "2B_base65cate_6k.sh", tmp_path, MODEL="my model", DATA="rows.jsonl", GPUS="2", NODES="3"
    )
    assert "--nproc_per_node=2" in recorded and "--nnodes=3" in recorded
    assert recorded[recorded.index("--model_name_or_path") + 1] == "my model"
    assert recorded[recorded.index("--dataset_name") + 1] == "rows.jsonl"


@pytest.mark.slow
def test_a_launcher_trains(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", count=8)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VIRTUAL_ENV": "1",
        "MODEL": str(tiny_qwen2_vl),
        "DATA": str(rows),
        "OUTPUT": str(tmp_path / "out"),
        "MASTER_PORT": str(20000 + os.getpid() % 20000),
        "DEBUG_MODE": "true",
        "LOG_PATH": str(tmp_path / "rollouts.txt"),
    }
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/example.sh"), "--use_cpu", "true", "--bf16", "false", "--max_steps", "1"]
        + ["--gradient_accumulation_steps", "2", "--max_completion_length", "8", "--report_to", "none"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "virft.json").is_file()
    assert list(tmp_path.glob("rollouts*"))


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda p: p.name)
def test_recipes_parse(recipe: Path, tmp_path: Path) -> None:
    lines = [li for li in recipe.read_text().splitlines() if not li.startswith("deepspeed:")]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    flags = ["--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path), "--bf16", "false"]
    *_, args = parse_flags(
        (RowArguments, RewardArguments, ModelArguments, VisualRFTConfig), [*flags, "--use_cpu", "true"]
    )
    # 8 completions a prompt, whatever the pieces in which they go through the policy.
    assert args.completions_per_step == args.prompts_per_step * 8
