"""Rewards of the user's own: found by ``file.py:function`` or ``package.module:function``, called in either
style."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from virft.completions import Completion, text_of
from virft.errors import UserError
from virft.rewards.outcome import Outcome
from virft.rewards.reward import SHARED_COLUMNS, Reward, finite

STYLES = (
    "def reward(reply, solution, **columns) for one reply, or "
    "def reward(completions, solution, **columns) for a batch"
)


def load_function(spelling: str) -> Callable[..., Any] | Reward:
    """The function that ``file.py:name`` or ``package.module:name`` names.

    Raises:
        UserError: no such file, module or name, or it is not a function. Errors inside of the user's module
            are raised as they are, with their traceback.
    """
    place, _, name = spelling.rpartition(":")
    module = _module_of_file(Path(place)) if place.endswith(".py") else _module(place, spelling)
    function = module
    for part in name.split("."):
        function = getattr(function, part, None)
        if function is None:
            offered = [
                n
                for n, v in vars(module).items()
                if inspect.isfunction(v) and v.__module__ == module.__name__
            ]
            raise UserError(
                f"{place} has no function {name!r}; functions in it: {', '.join(sorted(offered)) or 'none'}"
            )
    if not callable(function) or inspect.isclass(function):
        raise UserError(f"{spelling} is not a function; write it as {STYLES}")
    if inspect.iscoroutinefunction(function):
        raise UserError(f"{spelling} is an async function; write it as {STYLES}")
    return function


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"reward file {path} does not exist (looked for it in {Path.cwd()})")
    path = path.resolve()
    # One name for each path: two files called rewards.py do not hide each other, and one file is loaded once.
    name = f"virft_user_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    _make_importable(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as import does: dataclasses look their module up there
    with ExitStack() as undo:
        undo.callback(sys.modules.pop, name)
        spec.loader.exec_module(module)
        undo.pop_all()
    return module


def _module(name: str, spelling: str) -> ModuleType:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{spelling!r} is neither file.py:function nor package.module:function")
    _make_importable(Path.cwd())
    for length in range(1, name.count(".") + 2):
        parent = ".".join(name.split(".")[:length])
        if importlib.util.find_spec(parent) is None:
            raise UserError(f"module {parent!r} of reward {spelling!r} cannot be found; is it installed?")
    return importlib.import_module(name)


def _make_importable(folder: Path) -> None:
    """As for a script of that folder, but after everything installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def custom_reward(name: str, function: Callable[..., Any], parameters: Mapping[str, Any]) -> Reward:
    """A user's function as a :class:`Reward`.

    A function with a parameter ``completions`` (or with nothing but ``**kwargs``) is called as TRL calls it,
    once for a batch: columns are lists. Any other is called once for each reply, with the reply's text as its
    parameter ``completion`` or ``reply``, else as its first one, and the row's columns by name. Columns that
    it does not name are left out unless it takes ``**kwargs``. It returns a number or None (a list of them
    for a batch). A batch always holds lists of messages, as in training. ``function.maximum``, where set, is
    what a solution must earn.

    Raises:
        UserError: a parameter that the function does not take, or no place for the reply.
    """
    if isinstance(function, Reward) and not parameters:
        return function
    call = _Call.of(name, function, parameters)
    maximum = finite(getattr(function, "maximum", None), f"{name}'s maximum")
    return Reward(name, call.one, maximum, batch=call.many if call.in_batches else None)


@dataclass(frozen=True, slots=True)
class _Call:
    """How a user's function is called."""

    name: str
    function: Callable[..., Any]
    parameters: Mapping[str, Any]
    in_batches: bool
    reply: str | None  # the keyword for the reply, or None where it goes first
    accepted: frozenset[str] | None  # names of columns, or None for all
    needed: tuple[str, ...]

    @classmethod
    def of(cls, name: str, function: Callable[..., Any], parameters: Mapping[str, Any]) -> _Call:
        taken = list(inspect.signature(function).parameters.values())
        by_name = [p for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        names = [p.name for p in by_name]
        any_name = any(p.kind is p.VAR_KEYWORD for p in taken)
        ordered = [p for p in taken if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
        for parameter in parameters:
            if parameter not in names and not any_name:
                raise UserError(f"reward {name} has no parameter {parameter!r}; it takes {', '.join(names)}")
        in_batches = "completions" in names or (any_name and not ordered)
        reply = (
            "completions" if in_batches else next((n for n in ("completion", "reply") if n in names), None)
        )
        if reply is None and not ordered:
            raise UserError(f"reward {name} has no parameter for the reply; write it as {STYLES}")
        filled = {reply or ordered[0].name, "prompts", *parameters}
        needed = tuple(p.name for p in by_name if p.default is p.empty and p.name not in filled)
        accepted = None if any_name else frozenset(names) - {reply or ordered[0].name}
        return cls(name, function, parameters, in_batches, reply, accepted, needed)

    def arguments(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        for column in self.needed:
            if column not in columns:
                raise UserError(
                    f"reward {self.name} needs the column {column!r}, which the rows do not have; "
                    f"they have {', '.join(sorted(set(columns) - SHARED_COLUMNS))}"
                )
        chosen = {k: v for k, v in columns.items() if self.accepted is None or k in self.accepted}
        return {**chosen, **self.parameters}

    def one(self, completion: Completion, columns: Mapping[str, Any]) -> Outcome:
        if self.in_batches:
            lists = {k: v if k in SHARED_COLUMNS else [v] for k, v in columns.items()}
            lists.setdefault("prompts", [columns.get("prompt", columns.get("problem"))])
            # In training TRL gives lists of messages, so a function that works here works there.
            messages = (
                [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
            )
            return self.many([messages], lists)[0]
        text, arguments = text_of(completion), self.arguments(columns)
        value = (
            self.function(**{**arguments, self.reply: text})
            if self.reply
            else self.function(text, **arguments)
        )
        return _outcome(value, self.name)

    def many(self, completions: Sequence[Completion], columns: Mapping[str, Any]) -> list[Outcome]:
        values = self.function(**{**self.arguments(columns), "completions": completions})
        values = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(values, list | tuple) or len(values) != len(completions):
            got = f"{len(values)} values" if isinstance(values, list | tuple) else type(values).__name__
            raise UserError(
                f"reward {self.name} must return a list of {len(completions)} values, one a reply, got {got}"
            )
        return [_outcome(value, self.name) for value in values]


def _outcome(value: Any, name: str) -> Outcome:
    if isinstance(value, Outcome):
        if not isinstance(value.reason, str):
            raise UserError(f"reward {name} must give its reason as text, got {value.reason!r}")
        return Outcome(finite(value.value, name), value.reason)
    number = finite(value, name)
    return Outcome(None, "not_applicable") if number is None else Outcome(number, "custom")
