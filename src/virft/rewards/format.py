"""The format reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from virft.answer_tags import has_format
from virft.rewards.outcome import Outcome


def format_reward(reply: str, columns: Mapping[str, Any]) -> Outcome:
    """1 when the whole reply is ``<think>...</think> <answer>...</answer>``, else 0 (paper sec. 3)."""
    return Outcome(1.0) if has_format(reply) else Outcome(0.0, "bad_format")
