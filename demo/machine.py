"""Where the programs of a demonstration run: how many processes a training has, and the flags that say so."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--bf16", "false", "--gradient_checkpointing", "false")
"""Flags for the tiny model: it is too small for half precision, and for saving its activations' memory."""


@dataclass(frozen=True)
class Machine:
    """``processes`` of a training, and whether they are on GPUs."""

    processes: int
    cuda: bool

    @classmethod
    def found(cls, processes: int | None = None) -> Machine:
        """On GPUs where torch sees some, else on the CPU.

        Args:
            processes: of a training; by default one on a GPU machine, two on a CPU.
        """
        import torch

        cuda = torch.cuda.is_available()
        return cls(processes or (1 if cuda else 2), cuda)

    def train(self, program: str, *flags: Any) -> list[str]:
        """The command of a training program of ``src/virft``."""
        torchrun = Path(sys.executable).with_name("torchrun")
        start = [str(torchrun)] if torchrun.exists() else [sys.executable, "-m", "torch.distributed.run"]
        command = [
            *start,
            "--standalone",
            f"--nproc_per_node={self.processes}",
            str(ROOT / "src/virft" / program),
        ]
        where = [] if self.cuda else ["--use_cpu", "true"]
        return [*command, *map(str, flags), *where]

    def environment(self) -> dict[str, str]:
        """What every program is started with."""
        variables = {
            # Several processes with several threads each fight for the cores: six times slower on four.
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        # Without it DeepSpeed warns that it found no accelerator.
        return variables if self.cuda else variables | {"DS_ACCELERATOR": "cpu"}

    def prepare(self, offline: bool) -> str:
        """Set the environment for this program and what it starts; a sentence that says where they run.

        Args:
            offline: keep the libraries from asking the Hub, which a run on models of its own never needs.
        """
        variables = self.environment() | ({"HF_HUB_OFFLINE": "1"} if offline else {})
        os.environ.update(variables)
        place = f"{self.processes} processes" if self.processes > 1 else "one process"
        place += " on GPUs" if self.cuda else f" on {os.cpu_count()} CPU cores"
        set_there = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        return (
            f"Trains in {place}. Every command is shown; if you repeat one, do so after\n"
            f"    source .venv/bin/activate\n    export {set_there}\n"
        )

    def per_process(self, count: int) -> int:
        """The share of one process of ``count`` prompts or rows a step."""
        return count // self.processes
