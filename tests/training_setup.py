"""Rows, rewards and runs that the tests of training share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
"""What of a log differs from run to run."""

REWARD = '''"""A reward that differs within a group of a random model's replies, and names its failures."""

import os

from virft.rewards.outcome import Outcome


def letters(completions, images, **columns):
    if "trainer_state" in columns and os.environ.get("FAIL_RANK") == os.environ.get("RANK", "0"):
        raise RuntimeError("this rank fails")
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    # The code is another on each rank, which meets no code of the other's.
    code = "rank" + os.environ.get("RANK", "0")
    return [Outcome(len(set(text)) / 50 + len(i), code) for text, i in zip(texts, images)]
'''


def write_rows(folder: Path, kinds: Sequence[int] = (1,), count: int = 8, **columns: Any) -> Path:
    """``rows.json`` with ``count`` detection rows of kinds[i % len(kinds)] images each, of different
    sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        images = []
        for j in range(kinds[i % len(kinds)]):
            name = f"{i}_{j}.png"
            noise = Image.effect_noise((56 + 14 * (i % 4), 56 + 28 * (j % 2)), 80)
            noise.convert("RGB").save(folder / name)
            images.append(name)
        row = {
            "images": images,
            "problem": f"Find the cat {i}",
            "solution": "<answer>[{'Position': [100, 200, 300, 400], 'Confidence': 1}]</answer>",
        }
        rows.append(row | columns)
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    return folder / "rows.json"


def log_without_times(state: Any) -> list[dict[str, Any]]:
    """A run's log, less its last line, which speaks of the process, and everything that is a time."""
    history = state["log_history"] if isinstance(state, dict) else state.log_history
    return [
        {k: v for k, v in line.items() if k not in TIMES} for line in history if "train_runtime" not in line
    ]


def flags(model: Path, rows: Path, output: Path, **options: Any) -> list[str]:
    """Flags of a short run of grpo.py with the reward above; options override."""
    values = {
        "model_name_or_path": model,
        "dataset_name": rows,
        "output_dir": output,
        "reward_funcs": f"{rows.parent / 'reward.py'}:letters",
        "per_device_train_batch_size": 2,
        "num_generations": 4,
        "max_completion_length": 10,
        "max_pixels": 12544,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "save_steps": 1,
        "disable_tqdm": "true",
        "coordinates": "norm1000",
    } | options
    return [part for k, v in values.items() if v is not None for part in (f"--{k}", str(v))]


def torchrun(
    arguments: Sequence[str],
    zero: int | None = None,
    timeout: float = 240,
    name: str = "grpo.py",
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """A program on two CPU processes: plain DDP, DeepSpeed at a ZeRO stage, or what ``--fsdp`` asks for."""
    program = [str(ROOT / "src/virft" / name), *arguments]
    if zero or "--fsdp" in arguments:
        program = [str(ROOT / "tests/cpu_torchrun.py"), *program]
    if zero:
        program += ["--deepspeed", str(ROOT / f"local_scripts/zero{zero}.json")]
    elif "--fsdp" in arguments:
        program += ["--bf16", "false"]
    else:
        program += ["--use_cpu", "true"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *program]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=os.environ | environment, cwd=ROOT
    )
