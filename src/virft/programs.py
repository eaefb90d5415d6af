"""How programs run: what a user must mend becomes a sentence and an exit code, and none outlives torchrun."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from virft.errors import FULL, UserError

PATIENCE = 10.0
"""Seconds for which a later process of a machine leaves it to the first to say an error."""
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""Codes of a file that this user may not read or write."""
WATCH = 1.0
"""Seconds between two looks for torchrun."""


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
    under torchrun once for a machine. Where torchrun is killed, its programs stop as at SIGTERM.

    Exit code 2 for a :class:`UserError`, a full disk, and files that may not be read or written; 130 (as for
    any interrupted program) for Ctrl-C.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with(os.getppid())
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


def _end_with(parent: int) -> None:
    """Send SIGTERM to this process when ``parent`` is gone.

    A torchrun that is killed ends nothing. Programs that were about to meet one another would wait for half
    an hour, holding their devices; those in training stop after their step, with a checkpoint.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="torchrun", daemon=True).start()
