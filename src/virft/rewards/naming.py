"""From names, as written on a command line, to rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from virft.completions import Completion, text_of
from virft.errors import UserError
from virft.rewards.custom import custom_reward, load_function
from virft.rewards.outcome import Outcome, Spec
from virft.rewards.reward import Reward
from virft.rewards.table import REWARDS, TASK_REWARDS


def load_rewards(names: Sequence[str], **parameters: Any) -> list[Reward]:
    """The rewards that names stand for, in order.

    A reward is called by its plain name (a user's by its function's) where that is unique in the list, else
    by its whole spelling; so the same reward may be used with several settings.

    Args:
        names: ``accuracy_iou``, ``accuracy_iou:threshold=0.75,denominator=paper``, ``my_rewards.py:bonus``,
            ``package.module:bonus``, ``my_rewards.py:bonus:scale=2``.
        **parameters: further settings, each given to every named reward of the table that has it; one that
            stands in a name wins.

    Raises:
        UserError: an unknown name, a parameter that the reward does not have or may not have, the same
            spelling twice, or a function that cannot be loaded.
    """
    split = [split_name(name) for name in names]
    short = [plain if plain in REWARDS else plain.rpartition(":")[2] for plain, _ in split]
    for name in names:
        if list(names).count(name) > 1:
            raise UserError(f"reward {name} is named twice")
    unused = set(parameters)
    loaded = []
    for name, (plain, settings), call in zip(names, split, short, strict=True):
        shown = call if short.count(call) == 1 else name
        spec = REWARDS.get(plain)
        if spec is not None:
            common = {key: value for key, value in parameters.items() if key in spec.parameters}
            unused -= set(common)
            loaded.append(_table_reward(shown, spec, {**common, **settings}))
            continue
        if plain.partition(":")[0] in REWARDS:
            raise UserError(f"cannot read the reward {name!r}; write name:parameter=value,parameter=value")
        if ":" not in plain:
            raise UserError(
                f"unknown reward {plain!r}; known: {', '.join(REWARDS)}, "
                "or a function of your own as file.py:function or package.module:function"
            )
        loaded.append(custom_reward(shown, load_function(plain), settings))
    if unused:
        raise UserError(f"no named reward has the parameter {', '.join(sorted(unused))}")
    return loaded


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """("name", "file.py:function" or "package.module:function", parameters).

    Raises:
        UserError: the spelling is neither that nor followed by ``:parameter=value,...``.
    """
    head, _, tail = name.rpartition(":")
    if "=" not in name:
        if not name.strip(" :"):
            raise UserError(f"cannot read the reward {name!r}; write name or name:parameter=value,...")
        return name, {}
    settings: dict[str, Any] = {}
    for setting in tail.split(","):
        key, equals, value = setting.partition("=")
        if not head or not equals or not key.isidentifier() or not value or key in settings:
            raise UserError(f"cannot read the reward {name!r}; write name:parameter=value,parameter=value")
        settings[key] = _literal(value)
    return head, settings


def _literal(text: str) -> int | float | bool | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _table_reward(name: str, spec: Spec, settings: Mapping[str, Any]) -> Reward:
    for key, value in settings.items():
        parameter = spec.parameters.get(key)
        if parameter is None:
            known = ", ".join(spec.parameters) or "none"
            raise UserError(f"reward {name} has no parameter {key!r}; its parameters: {known}")
        if not parameter.allowed(value):
            raise UserError(f"reward {name}: {key}={value} is not allowed; {key}: {parameter.help}")
    function = partial(spec.function, **settings)

    def score(completion: Completion, columns: Mapping[str, Any]) -> Outcome:
        if not isinstance(columns.get("solution"), str):
            got = repr(columns.get("solution"))[:60]
            raise UserError(f"reward {name} needs text in the column 'solution', got {got}")
        return function(text_of(completion), columns)

    return Reward(name, score, spec.maximum, spec.tasks, tuple(TASK_REWARDS))
