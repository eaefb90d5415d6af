"""The table of rewards: names on the command line, their parameters, and the defaults of each task."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from virft.rewards.classification import accuracy
from virft.rewards.detection import accuracy_confidence, accuracy_iou
from virft.rewards.format import format_reward
from virft.rewards.grounding import accuracy_grounding
from virft.rewards.outcome import Parameter, Spec

DETECTION, CLASSIFICATION, GROUNDING = "detection", "classification", "grounding"
ALL_TASKS = ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


THRESHOLD = Parameter(
    0.5, lambda value: _is_number(value) and 0 <= value < 1, "a match needs an IoU above it; in [0, 1)"
)
DENOMINATOR = Parameter(
    "max",
    lambda value: value in ("max", "paper"),
    "what the sum is divided by: max (of predicted and true boxes) or paper (predicted boxes)",
)

REWARDS: Mapping[str, Spec] = MappingProxyType(
    {
        "accuracy_iou": Spec(
            accuracy_iou, 1.0, (DETECTION,), {"threshold": THRESHOLD, "denominator": DENOMINATOR}
        ),
        "accuracy_confidence": Spec(accuracy_confidence, 1.0, (DETECTION,), {"threshold": THRESHOLD}),
        "accuracy": Spec(accuracy, 1.0, (CLASSIFICATION,)),
        "accuracy_grounding": Spec(accuracy_grounding, 2.0, (GROUNDING,)),
        "format": Spec(format_reward, 1.0, ALL_TASKS),
    }
)
"""Name on the command line -> reward."""

TASK_REWARDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        DETECTION: ("accuracy_iou", "accuracy_confidence", "format"),
        CLASSIFICATION: ("accuracy", "format"),
        GROUNDING: ("accuracy_grounding", "format"),
    }
)
"""Task -> the rewards used where none are named; their sum is the training signal."""


def describe_rewards() -> str:
    """The table as text for ``--help``: name, range, first line of the docstring, parameters."""
    lines = ["rewards, with parameters written as name:parameter=value,parameter=value:"]
    for name, spec in REWARDS.items():
        first = inspect.getdoc(spec.function).splitlines()[0]
        lines.append(f"  {name} [0, {spec.maximum:g}]: {first}")
        lines += [f"      {key}={p.default}: {p.help}" for key, p in spec.parameters.items()]
    lines.append("  file.py:function or package.module:function: a reward of your own")
    return "\n".join(lines)
