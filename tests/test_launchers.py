"""Launchers and recipes: they parse, what they name exists, and their flags are the program's."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from virft import grpo, sft
from virft.errors import UserError
from virft.settings import ModelArguments, RowArguments, parse_flags
from virft.sft_trainer import VisualSFTConfig
from virft.trainer import VisualRFTConfig

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = (
    "2B_base65cate_6k.sh",
    "7B_base65cate_6k.sh",
    "2B_aircraft_4_shot.sh",
    "2B_lisa_grounding.sh",
    "example.sh",
)
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
GRPO = (RowArguments, grpo.RewardArguments, ModelArguments, VisualRFTConfig)
SFT = (RowArguments, sft.TargetArguments, ModelArguments, VisualSFTConfig)


def command(script: str, folder: Path, *flags: str, **environment: str) -> list[str]:
    """What a launcher runs, caught by a torchrun that prints its arguments."""
    fake = folder / "torchrun"
    fake.write_text('#!/usr/bin/env bash\npwd; printf "%q " "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *flags],
        capture_output=True, text=True, check=True, cwd="/", env=os.environ | {"PATH": path} | environment,
    )  # fmt: skip
    where, arguments = done.stdout.split("\n", 1)
    assert Path(where) == ROOT
    return shlex.split(arguments)


def without_devices(arguments: list[str]) -> list[str]:
    """The program's flags as a machine without GPU and DeepSpeed can parse them."""
    kept, skip = [], 0
    for argument in arguments:
        if skip:
            skip -= 1
        elif argument in ("--deepspeed", "--bf16"):
            skip = 1
        else:
            kept.append(argument)
    return [*kept, "--use_cpu", "true"]


@pytest.mark.parametrize("name", [p.name for p in sorted((ROOT / "scripts").glob("*.sh"))])
def test_scripts_are_bash(name: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "scripts" / name)], check=True)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_run_what_exists_with_flags_that_parse(name: str, tmp_path: Path) -> None:
    arguments = command(name, tmp_path, "--seed", "7", NPROC_PER_NODE="3", OUTPUT_DIR=str(tmp_path / "out"))
    assert "--nproc_per_node=3" in arguments and "--nnodes=1" in arguments
    program = arguments.index("src/virft/grpo.py")
    assert (ROOT / arguments[program]).is_file()
    flags = arguments[program + 1 :]
    settings = json.loads((ROOT / flags[flags.index("--deepspeed") + 1]).read_text())
    assert settings["zero_optimization"]["stage"] in (2, 3)
    _, rewards, model, args = parse_flags(GRPO, without_devices(flags))
    assert args.output_dir == str(tmp_path / "out") and args.seed == 7 and args.max_pixels == 401408
    assert args.num_generations == (4 if name.startswith("7B") else 8)
    assert model.model_name_or_path.startswith("Qwen/Qwen2-VL-" + name[:2].replace("ex", "2B"))
    expected = {"2B_aircraft_4_shot.sh": "classification", "2B_lisa_grounding.sh": "grounding"}
    assert rewards.task == [expected.get(name, "detection")]
    # The batch arithmetic that the header promises, on its eight devices.
    header = (ROOT / "scripts" / name).read_text()
    if match := re.search(r"= (\d+) prompts, (\d+) completions a step", header):
        assert int(match[1]) == 8 * args.prompts_per_step
        assert int(match[2]) == 8 * args.completions_per_step


@pytest.mark.parametrize("name", LAUNCHERS)
def test_without_torchrun_the_mend_is_said(name: str, tmp_path: Path) -> None:
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / name)], capture_output=True, text=True, env={"PATH": str(tmp_path)}
    )
    assert done.returncode == 2 and "source .venv/bin/activate" in done.stderr and not done.stdout


def test_the_slurm_example_passes_nodes_on() -> None:
    text = (ROOT / "scripts" / "slurm_example.sh").read_text()
    assert "NODE_RANK=$SLURM_NODEID" in text and "--signal=TERM@300" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes_parse_and_their_arithmetic_holds(path: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    for key in ("deepspeed", "load_in_4bit"):  # neither parses without its package or device
        if key == "deepspeed" and key in content:
            assert (ROOT / content.pop(key)).is_file()
    plain = tmp_path / "recipe.yaml"
    plain.write_text(yaml.safe_dump(content), encoding="utf-8")
    classes = SFT if path.name.startswith("sft") else GRPO
    *_, args = parse_flags(
        classes, ["--config", str(plain), "--output_dir", str(tmp_path), "--use_cpu", "true"]
    )
    match = re.search(r"# (\d+) devices? x .* = (\d+) prompts, (\d+) completions a step", path.read_text())
    if match:
        devices, prompts, completions = (int(number) for number in match.groups())
        assert prompts == devices * args.prompts_per_step
        assert completions == devices * args.completions_per_step


def test_an_unknown_key_of_a_recipe_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("num_generation: 8\n", encoding="utf-8")
    with pytest.raises(UserError, match="num_generation"):
        parse_flags(GRPO, ["--config", str(recipe), "--output_dir", str(tmp_path), "--use_cpu", "true"])
    with pytest.raises(UserError, match=r"absent\.yaml"):
        parse_flags(GRPO, ["--config", str(tmp_path / "absent.yaml"), "--output_dir", str(tmp_path)])
