"""The one exception for bad input from a user."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Input that only the user can mend. The message is one sentence: what is wrong, where, and the mend."""


def run_program(main: Callable[[], None]) -> None:
    """Run a program's ``main``; a :class:`UserError` becomes one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
