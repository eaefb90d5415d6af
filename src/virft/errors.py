"""The one exception for bad input from a user."""

from __future__ import annotations

import difflib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence

PATIENCE = 10.0
"""Seconds for which a later process of a machine leaves it to the first to say an error."""


SHOWN = 3
"""How many bad rows an error names before it counts the rest."""


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Codes of a disk, a quota or a file that takes no more."""
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""Codes of a file that this user may not read or write."""
FULL_WORDS = (
    *(os.strerror(code) for code in FULL),
    *(f"os error {code})" for code in FULL),
    "PytorchStreamWriter failed writing",
    "unexpected pos",
)
"""What libraries that write by themselves say of a full disk: safetensors, PyTorch."""


class UserError(ValueError):
    """Input that only the user can mend. The message is one sentence: what is wrong, where, and the mend."""


def named(numbers: Sequence[int]) -> str:
    """ "row 3" or "rows 3, 7, 9 and 12 more"."""
    shown = ", ".join(str(n) for n in numbers[:SHOWN])
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more}"


def unknown_flag(flag: str, known: Iterable[str]) -> UserError:
    """The error for a flag that a program has not, with the nearest one that it has."""
    near = difflib.get_close_matches(flag, list(known), 1)
    return UserError(f"unknown flag {flag}{f'; did you mean {near[0]}?' if near else ''}; --help lists all")


def no_room(error: Exception) -> bool:
    """Whether an error says that the disk is full, whatever library met it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(words in str(error) for words in FULL_WORDS)


def _of_files(error: OSError) -> str | None:
    """The sentence for an error of files that only the user can mend; None for any other."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL:
        return f"{where}{error.strerror}; make room and start again, what was written whole is kept"
    if error.errno in FORBIDDEN:
        return f"{where}{error.strerror}; change its permissions, or name another place"
    return None


def run_program(main: Callable[[], None]) -> None:
    """Run a program's ``main``; what the user did or must mend becomes one line on stderr, without traceback;
    under torchrun once for a machine.

    Exit code 2 for a :class:`UserError`, a full disk, and files that may not be read or written; 130 (as for
    any interrupted program) for Ctrl-C.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except (UserError, OSError) as error:
        said = str(error) if isinstance(error, UserError) else _of_files(error)
        if said is None:
            raise
        if os.environ.get("LOCAL_RANK", "0") != "0":
            # The first process of the machine has most likely met the same error. It says so and ends, upon
            # which torchrun ends this one; what only this process met is said a moment later.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(PATIENCE)
        sys.stderr.write(f"error: {said}\n")
        sys.exit(2)
