"""CONTRIBUTING names what is there and its code does what it says; benchmarks refuse bad flags."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from virft.metrics.rows import METRICS, RowMetric
from virft.rewards import REWARDS, TASK_REWARDS, table
from virft.rewards.outcome import REASONS, Outcome


def test_every_path_is_there(root: Path) -> None:
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [n for n in re.findall(r"`([\w./]+)`", text) if "/" in n or n.endswith(".py")]
    own = {"my_rewards.py", "utils.py"}  # the user's, and one that must not be
    assert [n for n in named if n not in own and not (root / n).exists()] == []
    assert "src/virft/evaluate/__main__.py" in named


def test_a_reward_is_added_as_it_says(root: Path) -> None:
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.search(r"(    def even\(.*?)\n\n    (\"even\": Spec\(.*?\)),", text, re.DOTALL)
    function = "\n".join(line[4:] for line in code[1].splitlines())
    names = {
        "Mapping": Mapping,
        "Any": Any,
        "Outcome": Outcome,
        "Spec": table.Spec,
        "ALL_TASKS": table.ALL_TASKS,
    }
    exec(function, names)
    spec = eval("{" + code[2] + "}", names)["even"]
    assert type(spec) is type(REWARDS["format"])
    assert [spec.function(reply, {}).value for reply in ("ab", "a")] == [1.0, 0.0]
    assert spec.function("a", {}).reason in REASONS


def test_every_task_has_its_numbers() -> None:
    assert METRICS.keys() == TASK_REWARDS.keys()
    assert RowMetric(tuple(TASK_REWARDS), "norm1000", 4, 400).best == "map"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "flags", "says"),
    [
        ("build_dataset", ["--output", "FILE/below.json"], "FILE/below.json"),
        ("build_dataset", ["--annotations", "0"], "--annotations must be at least 1"),
        ("evaluation", ["--output", "FILE/below.json"], "FILE/below.json"),
        ("evaluation", ["--rounds", "0"], "--rounds must be at least 1"),
        ("grpo_step", ["--output", "FILE/below.json"], "FILE/below.json"),
        ("grpo_step", ["--generations", "1"], "--generations must be at least 2"),
    ],
)
def test_benchmarks_refuse_before_they_measure(
    root: Path, tmp_path: Path, program: str, flags: list[str], says: str
) -> None:
    (tmp_path / "FILE").touch()
    command = [sys.executable, str(root / "benchmarks" / f"{program}.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 2
    assert "error: " in done.stderr and says in done.stderr and "Traceback" not in done.stderr
