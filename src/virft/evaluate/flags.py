"""A dataclass of defaults that is also a program's flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from transformers import HfArgumentParser

from virft.errors import UserError, unknown_flag

T = TypeVar("T")


class Flags(HfArgumentParser):
    """Flags of one dataclass; a default that a subclass states anew keeps the help of the class above it."""

    def __init__(self, settings: type, **kwargs: Any) -> None:
        self._help = {
            name: entry.metadata["help"].replace("%", "%%")
            for cls in reversed(settings.__mro__)
            if dataclasses.is_dataclass(cls)
            for name, entry in cls.__dataclass_fields__.items()
            if "help" in entry.metadata
        }
        description = (settings.__doc__ or "").strip().splitlines()[0]
        super().__init__(settings, description=description, **kwargs)

    def add_argument(self, *names: Any, **kwargs: Any) -> Any:
        """Add a flag with its help."""
        if names and names[0].startswith("--"):
            text = self._help.get(names[0].removeprefix("--"))
            if text is not None:
                kwargs["help"] = text
        return super().add_argument(*names, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one sentence instead of printing all flags before it."""
        raise UserError(f"{message}; --help lists all flags")


def parse(settings: type[T], arguments: Sequence[str] | None = None, program: str | None = None) -> T:
    """An instance of ``settings`` with the command line's values in place of defaults.

    Args:
        settings: a dataclass; the first line of its docstring describes the program.
        arguments: default ``sys.argv[1:]``.
        program: the name to show in the usage line.

    Raises:
        UserError: an unknown flag, or a value of another kind.
    """
    parser = Flags(settings, prog=program)
    parsed, *left = parser.parse_args_into_dataclasses(
        arguments, return_remaining_strings=True, look_for_args_file=False
    )
    unknown = [word for word in left[-1] if word.startswith("-")]
    if unknown:
        raise unknown_flag(unknown[0].split("=")[0], parser._option_string_actions)
    if left[-1]:
        raise UserError(f"{left[-1][0]!r} belongs to no flag; --help lists all")
    return parsed
