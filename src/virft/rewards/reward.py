"""The callable that TRL gets: one reward, scored reply by reply, with reasons counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from virft.completions import Completion
from virft.errors import UserError, shown
from virft.rewards.outcome import Outcome

SHARED_COLUMNS = frozenset({"trainer_state", "log_extra", "log_metric", "environments"})
"""Keyword arguments that TRL passes once for the batch and not once for each completion."""


def finite(value: Any, name: str) -> float | None:
    """A reward's value as a float, or None; numbers of numpy and torch are numbers too.

    Raises:
        UserError: no number, or NaN, infinite or beyond any float.
    """
    if value is None:
        return None
    try:
        number = None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):  # no number, or an array of several
        number = None
    except OverflowError:
        number = math.inf
    if number is None:
        raise UserError(f"reward {name} must return a number or None for a reply, got {shown(value)}")
    if not math.isfinite(number):
        raise UserError(f"reward {name} returned {number} for a reply: return a finite number or None")
    return number


class Reward:
    """One reward, as ``GRPOTrainer(reward_funcs=...)`` takes it.

    Attributes:
        name: as shown in metrics and output; also ``__name__``, which is TRL's metric key.
        maximum: what a solution itself earns, or None where that is not known (a reward of the user's).
        tasks: on rows whose column ``task`` names another known task the value is None; empty: all tasks.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Completion, Mapping[str, Any]], Outcome],
        maximum: float | None = None,
        tasks: Sequence[str] = (),
        known_tasks: Sequence[str] = (),
        batch: Callable[[Sequence[Completion], Mapping[str, Any]], list[Outcome]] | None = None,
    ) -> None:
        self.name = name
        self.maximum = maximum
        self.tasks = tuple(tasks)
        self._other_tasks = frozenset(known_tasks) - frozenset(tasks) if tasks else frozenset()
        self._function = function
        self._batch = batch

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def reason_metrics(self) -> str:
        """What the names of the metrics begin with that hold the shares of reason codes."""
        return f"reasons/{self.name}/"

    def __repr__(self) -> str:
        return f"Reward({self.name!r}, maximum={self.maximum})"

    def score(self, completion: Completion, columns: Mapping[str, Any]) -> Outcome:
        """The value of one completion and why.

        Args:
            completion: a reply as text or as TRL's list of messages.
            columns: the columns of its row (``solution`` and any others), and ``trainer_state`` in training.

        Raises:
            UserError: the row has no solution where one is needed, or a user's function returned no number.
        """
        task = columns.get("task")
        if isinstance(task, str) and task in self._other_tasks:
            return Outcome(None, "other_task")
        outcome = self._function(completion, columns)
        return Outcome(finite(outcome.value, self.name), outcome.reason)

    def outcomes(self, completions: Sequence[Completion], **columns: Any) -> list[Outcome]:
        """Outcomes of a batch; arguments as for :meth:`__call__`."""
        if self._batch is not None:
            return self._batch(completions, columns)
        return [
            self.score(completion, row_of(columns, index, len(completions)))
            for index, completion in enumerate(completions)
        ]

    def __call__(self, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Values of a batch, as TRL asks for them.

        Args:
            completions: replies, as texts or as lists of messages.
            **columns: the rows' columns, each a list as long as ``completions``; ``prompts``,
                ``completion_ids`` and what TRL adds. Through ``log_metric`` the share of the batch's replies
                with each reason code is logged as ``reasons/<reward>/<code>``, for codes that the batch has
                (see :mod:`virft.reason_shares` for what several batches make of that).
        """
        outcomes = self.outcomes(completions, **columns)
        log_metric = columns.get("log_metric")
        if log_metric is not None and outcomes:
            for code, count in sorted(Counter(outcome.reason for outcome in outcomes).items()):
                log_metric(self.reason_metrics + code, count / len(outcomes))
        return [outcome.value for outcome in outcomes]


def row_of(columns: Mapping[str, Any], index: int, size: int) -> dict[str, Any]:
    """The columns of one completion out of a batch's; ``prompts`` is also there as ``prompt``."""
    row = {
        name: values[index]
        if name not in SHARED_COLUMNS and isinstance(values, list | tuple) and len(values) == size
        else values
        for name, values in columns.items()
    }
    if "prompts" in row:
        row.setdefault("prompt", row["prompts"])
    return row
