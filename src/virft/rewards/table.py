"""The table of rewards: names on the command line, their parameters, and the defaults of each task."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from virft.rewards.average_precision import od_length, sample_map
from virft.rewards.classification import accuracy
from virft.rewards.detection import accuracy_confidence, accuracy_iou
from virft.rewards.format import format_reward
from virft.rewards.grounding import accuracy_grounding
from virft.rewards.masks import mask_iou
from virft.rewards.outcome import Parameter, Spec
from virft.rewards.visual import (
    brier_confidence,
    count,
    giou,
    hungarian_iou,
    hungarian_l1,
    iou_squared,
    scheduled_iou,
    weighted_sum,
)

DETECTION, CLASSIFICATION, GROUNDING = "detection", "classification", "grounding"
ALL_TASKS = ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _threshold(default: float, meaning: str) -> Parameter:
    return Parameter(default, _is_share, f"{meaning}; in [0, 1)")


THRESHOLD = _threshold(0.5, "a match needs an IoU above it")
DENOMINATOR = Parameter(
    "max",
    lambda value: value in ("max", "paper"),
    "what the sum is divided by: max (of predicted and true boxes) or paper (predicted boxes)",
)


def _weight(default: float, meaning: str) -> Parameter:
    return Parameter(default, lambda value: _is_number(value) and 0 < value < math.inf, f"weight {meaning}")


DISTANCE = Parameter(
    10.0,
    lambda value: _is_number(value) and 0 < value < math.inf,
    "mean difference of coordinates below which boxes are near, in units of the row's space",
)
AP_IOU = Parameter(
    "coco",
    lambda value: value == "coco" or (_is_number(value) and 0 < value < 1),
    "coco (mean over 0.50, 0.55 ... 0.95), or one IoU in (0, 1)",
)
RESOLUTION = Parameter(
    512,
    lambda value: isinstance(value, int) and not isinstance(value, bool) and 16 <= value <= 4096,
    "cells of the grid along its longer side, 16 to 4096",
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
        "iou_squared": Spec(
            iou_squared, 1.0, (DETECTION,), {"threshold": THRESHOLD, "denominator": DENOMINATOR}
        ),
        "scheduled_iou": Spec(
            scheduled_iou,
            1.0,
            (DETECTION,),
            {
                "start": _threshold(0.5, "threshold at the first step"),
                "end": _threshold(0.9, "threshold at the last step"),
                "denominator": DENOMINATOR,
            },
        ),
        "giou": Spec(giou, 1.0, (DETECTION,)),
        "hungarian_iou": Spec(hungarian_iou, 1.0, (DETECTION,), {"threshold": THRESHOLD}),
        "hungarian_l1": Spec(hungarian_l1, 1.0, (DETECTION,), {"distance": DISTANCE}),
        "weighted_sum": Spec(
            weighted_sum,
            1.0,
            (DETECTION,),
            {
                "threshold": _threshold(0.5, "a match needs at least this IoU"),
                "position": _weight(0.7, "of how well matched boxes lie"),
                "completeness": _weight(0.3, "of missed boxes and false alarms"),
            },
        ),
        "sample_map": Spec(sample_map, 1.0, (DETECTION,), {"iou": AP_IOU}),
        "od_length": Spec(od_length, 1.0, (DETECTION,), {"iou": AP_IOU}),
        "brier_confidence": Spec(brier_confidence, 1.0, (DETECTION,), {"threshold": THRESHOLD}),
        "count": Spec(count, 1.0, (DETECTION,)),
        "mask_iou": Spec(mask_iou, 1.0, ALL_TASKS, {"resolution": RESOLUTION}),
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
