"""The one exception for what only a user can mend, and the words that messages share."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 3
"""How many bad rows an error names before it counts the rest."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Codes of a disk, a quota or a file that takes no more."""
FULL_WORDS = (
    *(os.strerror(code) for code in FULL),
    *(f"os error {code})" for code in FULL),
    "PytorchStreamWriter failed writing",
    "unexpected pos",
)
"""What libraries that write by themselves say of a full disk: safetensors, PyTorch."""


class UserError(ValueError):
    """Input that only the user can mend. The message is one sentence: what is wrong, where, and the mend."""


def named(rows: Sequence[int | str]) -> str:
    """ "row 3" or "rows 3, 7, 9 and 12 more", of numbers or of numbers with a remark behind each."""
    shown = ", ".join(map(str, rows[:SHOWN]))
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"


def shown(value: Any) -> str:
    """A value of the user's with its type, cut to one line: "list [1, 2]"."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '...'}"


def unknown_flag(flag: str, known: Iterable[str]) -> UserError:
    """The error for a flag that a program has not, with the nearest one that it has."""
    near = difflib.get_close_matches(flag, list(known), 1)
    return UserError(f"unknown flag {flag}{f'; did you mean {near[0]}?' if near else ''}; --help lists all")


def no_room(error: Exception) -> bool:
    """Whether an error says that the disk is full, whatever library met it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(words in str(error) for words in FULL_WORDS)
