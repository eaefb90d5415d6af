"""Every rollout as text, for a human eye: one file per rank, asked for by DEBUG_MODE and LOG_PATH."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


class RolloutLog:
    """Appends the replies of a rank, with their solutions and rewards, to a text file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_environment(cls, output_dir: str, rank: int) -> RolloutLog | None:
        """A log where ``DEBUG_MODE`` is "true" (as in the reference), else None.

        ``LOG_PATH`` names the file, and the rank goes before its suffix; without it the file is
        ``rollouts.rank<N>.txt`` in the output folder.
        """
        if os.environ.get("DEBUG_MODE", "").lower() != "true":
            return None
        path = Path(os.environ.get("LOG_PATH") or Path(output_dir) / "rollouts.txt")
        return cls(path.with_name(f"{path.stem}.rank{rank}{path.suffix or '.txt'}"))

    def write(
        self,
        step: int,
        rows: Sequence[Mapping[str, Any]],
        replies: Sequence[str],
        names: Sequence[str],
        rewards: torch.Tensor,
    ) -> None:
        """Append one generation: rewards of shape (replies, names), NaN where one does not apply."""
        stamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        with self.path.open("a", encoding="utf-8") as file:
            for row, reply, values in zip(rows, replies, rewards.tolist(), strict=True):
                scores = "  ".join(f"{name} {value:.4f}" for name, value in zip(names, values, strict=True))
                file.write(f"------ {stamp} step {step}  {scores}\n")
                file.write(
                    f"problem: {row.get('problem', '')}\nreply: {reply}\nsolution: {row.get('solution')}\n"
                )
