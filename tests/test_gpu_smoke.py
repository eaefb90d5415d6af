"""The GPU check runs on a CPU with tiny models, and its shapes are those of the real models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = [sys.executable, str(ROOT / "benchmarks" / "gpu_smoke.py")]


@pytest.mark.slow
def test_it_runs_on_tiny_models() -> None:
    done = subprocess.run([*PROGRAM, "--tiny", "--steps", "2"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert [line["family"] for line in lines] == ["qwen2_vl", "qwen2_5_vl"]
    assert all(len(line["losses"]) == 2 for line in lines)


@pytest.mark.gpu
def test_it_runs_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    done = subprocess.run(PROGRAM, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
