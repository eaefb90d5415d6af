"""The flags that choose rewards, of every program that takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from virft.errors import UserError, named
from virft.rewards.naming import load_rewards
from virft.rewards.reward import Reward
from virft.rewards.table import TASK_REWARDS


@dataclass
class RewardArguments:
    """What a reply is worth."""

    task: list[str] = field(
        default_factory=lambda: ["detection"],
        metadata={
            "help": "Chooses the default rewards. Several tasks may be mixed where every row names its own "
            f"in a column 'task'. Known: {', '.join(TASK_REWARDS)}."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Rewards instead of --task's: names, file.py:function, package.module:function."},
    )
    skip_solution_check: bool = field(
        default=False,
        metadata={"help": "Start even where a reward does not give its maximum to the solutions themselves."},
    )


def rewards_of(arguments: RewardArguments, tasks: Sequence[str | None]) -> list[Reward]:
    """The rewards that the flags choose.

    Args:
        arguments: the flags.
        tasks: the rows' own tasks; None where a row names none.

    Raises:
        UserError: unknown task or reward, rows of a task that no reward is for, or rows without a task where
            tasks are mixed.
    """
    for task in arguments.task:
        if task not in TASK_REWARDS:
            raise UserError(f"--task {task!r} is unknown; choose from {', '.join(TASK_REWARDS)}")
    mixed = len(arguments.task) > 1
    # With one task, rows without their own are of it, and those of a task unknown here are the user's.
    wrong = {task for task in set(tasks) - set(arguments.task) if mixed or task in TASK_REWARDS}
    lost = [number for number, task in enumerate(tasks) if task in wrong]
    if lost and (mixed or not arguments.reward_funcs):
        raise UserError(
            f"{named(lost)}: column 'task' must be one of {', '.join(arguments.task)}, got "
            f"{tasks[lost[0]]!r}; --task names every task of the rows"
        )
    names = dict.fromkeys(name for task in arguments.task for name in TASK_REWARDS[task])
    return load_rewards(arguments.reward_funcs or list(names))
