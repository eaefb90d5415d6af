"""The flags that choose rewards, of every program that takes them."""

from __future__ import annotations

from dataclasses import dataclass, field

from virft.rewards.table import TASK_REWARDS


@dataclass
class RewardArguments:
    """What a reply is worth."""

    task: list[str] = field(
        default_factory=lambda: ["detection"],
        metadata={
            "help": "Chooses the default rewards. Several tasks may be mixed where every row "
            "names its own in a "
            f"column 'task'. Known: {', '.join(TASK_REWARDS)}."
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
