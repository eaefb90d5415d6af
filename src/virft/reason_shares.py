"""Shares of reason codes that are true over all ranks and over all generations of a line of the log."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object


class TrueReasonShares:
    """Mixed into a GRPO trainer, before it in the order of bases.

    A reward with an attribute ``reason_metrics`` logs under names that begin with it which share of a batch's
    replies had each code, for the codes that the batch had. TRL averages a metric over the ranks and the
    generations that logged it; a code that a rank or a generation did not meet has the share 0 there, and
    would be left out. Codes need not be known beforehand: a user's own reward may name any.
    """

    _reasons: set[str] | None = None

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)
        prefixes = tuple(r.reason_metrics for r in self.reward_funcs if hasattr(r, "reason_metrics"))
        if prefixes:
            self._complete(prefixes)
        return rewards

    def _complete(self, prefixes: tuple[str, ...]) -> None:
        averages = self._metrics["train" if self.model.training else "eval"]
        if self._reasons is None:  # a resumed run knows the codes that it met before
            self._reasons = {name for line in self.state.log_history for name in line} | set(averages)
            self._reasons = {name for name in self._reasons if name.startswith(prefixes)}
        here = [name for name in self._pending_metrics if name.startswith(prefixes)]
        self._reasons.update(name for names in gather_object([here]) for name in names)
        earlier = len(averages["completions/mean_length"]) - 1  # generations since the last line of the log
        for name in self._reasons:
            self._pending_metrics[name] = self._pending_metrics.get(name) or [0.0]
            averages[name] += [0.0] * (earlier - len(averages[name]))
