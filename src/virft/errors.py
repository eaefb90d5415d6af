"""The one exception for bad input from a user."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence

PATIENCE = 10.0
"""Seconds for which a later process of a machine leaves it to the first to say an error."""


SHOWN = 3
"""How many bad rows an error names before it counts the rest."""


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


def run_program(main: Callable[[], None]) -> None:
    """Run a program's ``main``; what the user did or must mend becomes one line on stderr, without traceback;
    under torchrun once for a machine.

    Exit code 2 for a :class:`UserError`, 130 (as for any interrupted program) for Ctrl-C.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            # The first process of the machine has most likely met the same error. It says so and ends, upon
            # which torchrun ends this one; what only this process met is said a moment later.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(PATIENCE)
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
