"""What a reply is worth: the table of rewards, and callables made from names."""

from virft.rewards.checking import check_solutions, scored
from virft.rewards.naming import load_rewards
from virft.rewards.outcome import REASONS, Outcome
from virft.rewards.reward import Reward
from virft.rewards.table import REWARDS, TASK_REWARDS, describe_rewards

__all__ = [
    "REASONS",
    "REWARDS",
    "TASK_REWARDS",
    "Outcome",
    "Reward",
    "check_solutions",
    "describe_rewards",
    "load_rewards",
    "scored",
]
