"""Before training: every reward, run on the solutions themselves, must give its maximum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from virft import parsing
from virft.answer_tags import has_format
from virft.completions import Completion
from virft.errors import UserError, named
from virft.rewards.outcome import Outcome
from virft.rewards.reward import Reward

TOLERANCE = 1e-6
EXCUSED = frozenset({"no_confidence", "box_for_mask"})
"""A truth needs no confidence, and a box that stands for a mask cannot equal it: neither is a broken row."""


def check_solutions(rewards: Sequence[Reward], rows: Iterable[Mapping[str, Any]]) -> None:
    """Run every reward on the solutions themselves.

    Args:
        rewards: those of :func:`virft.rewards.load_rewards`; one without a known maximum only has to run.
        rows: mappings with ``solution`` and the other columns that the rewards use (leave images out: reading
            them decodes them).

    Raises:
        UserError: some solution earns less than the maximum; names the rows, counted from 0.
    """
    bad: dict[int, list[tuple[int, Outcome]]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row.get("solution"), str):
            raise UserError(f"row {number} has no text in the column 'solution'")
        reply = reply_of_solution(row["solution"])
        for index, reward in enumerate(rewards):
            outcome = scored(reward, reply, row, f"row {number}")
            excused = outcome.value is None or outcome.reason in EXCUSED
            if reward.maximum is not None and not excused and outcome.value < reward.maximum - TOLERANCE:
                bad.setdefault(index, []).append((number, outcome))
    if not bad:
        return
    first = min(bad)
    rows_of_first = [f"{number} ({outcome.value:g}, {outcome.reason})" for number, outcome in bad[first]]
    others = ", ".join(rewards[index].name for index in sorted(bad)[1:])
    like = f" (like {others})" if others else ""
    raise UserError(
        f"reward {rewards[first].name}{like} gives some solutions less than its maximum "
        f"{rewards[first].maximum:g}: {named(rows_of_first)}; mend these solutions or choose rewards that "
        "fit the task"
    )


def scored(reward: Reward, reply: Completion, row: Mapping[str, Any], where: str) -> Outcome:
    """A reply's outcome; an error that scoring it raises also says at which row.

    Raises:
        UserError: as for :meth:`virft.rewards.Reward.score`.
    """
    with ExitStack() as stack:
        stack.push(partial(_say_where, reward.name, where))
        return reward.score(reply, row)


def _say_where(name: str, where: str, kind: Any, error: BaseException | None, trace: Any) -> None:
    if isinstance(error, UserError):
        raise UserError(f"{where}: {error}") from error
    if error is not None:  # of the user's own function: raised as it is, with its traceback
        error.add_note(f"reward {name} raised this at {where}")


def reply_of_solution(solution: str) -> str:
    """A well-formed reply that answers exactly the solution: thinking and tags are added where absent."""
    text = solution.strip()
    if has_format(text):
        return text
    answer = parsing.parse_answer(text)
    return f"<think> </think> <answer>{answer.value if answer.ok else text}</answer>"
