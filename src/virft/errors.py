"""The one exception for bad input from a user."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Input that only the user can mend. The message is one sentence: what is wrong, where, and the mend."""


def run_program(main: Callable[[], None]) -> None:
    """Run a program's ``main``; what the user did or must mend becomes one line on stderr, without traceback.

    Exit code 2 for a :class:`UserError`, 130 (as for any interrupted program) for Ctrl-C.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
