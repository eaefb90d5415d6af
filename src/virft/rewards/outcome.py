"""What a reward says of one reply, and the codes in which it says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from virft import parsing

REASONS: Mapping[str, str] = MappingProxyType(
    {
        **parsing.REASONS,
        "ok": "the reply was read and earned something",
        "partial": "the reply earned something, and unreadable parts of it were dropped",
        "agree_none": "the solution has no box, and the reply says so",
        "false_alarm": "the solution has no box, and the reply lists some",
        "missed": "the solution has boxes, and the reply says that there is none",
        "no_match": "no box matches one of the solution's",
        "no_confidence": "no box has a confidence",
        "inverted_box": "the second corner lies left of or above the first",
        "wrong_class": "another class than the solution's",
        "bad_format": "the reply is not <think>...</think> <answer>...</answer>",
        "box_for_mask": "a box was compared with a mask, which hardly any box can equal",
        "bad_solution": "the row's solution cannot be read: mend the data set",
        "other_task": "the reward does not apply to the row's task",
        "not_applicable": "the reward's author gave no value for this row",
        "custom": "the value of a reward of the user's own",
    }
)
"""Reason code -> sentence, those of the reader included."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``value`` in the reward's range, or None where it does not apply; ``reason``, a code of
    :data:`REASONS`."""

    value: float | None
    reason: str = "ok"


ScoreFunction = Callable[..., Outcome]
"""``(reply, columns, **parameters) -> Outcome``; columns are one row's."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A setting of a reward: its default, what it may be, and what it means."""

    default: Any
    allowed: Callable[[Any], bool]
    help: str


@dataclass(frozen=True, slots=True)
class Spec:
    """A line of the table of rewards.

    Attributes:
        function: scores one reply.
        maximum: what the solution itself earns.
        tasks: the tasks to which the reward applies; on rows of another task it gives None.
        parameters: settings by name.
    """

    function: ScoreFunction
    maximum: float
    tasks: tuple[str, ...]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
