"""How programs run: what a user must mend becomes a sentence and an exit code, none outlives torchrun, no two
write into one folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from virft.errors import FULL, UserError

logger = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds for which a later process of a machine leaves it to the first to say an error."""
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""Codes of a file that this user may not read or write."""
WATCH = 1.0
"""Seconds between two looks for torchrun, or for the end of what a killed run left behind."""


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
    if _under_torchrun():
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


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


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


@contextmanager
def claimed(flag: str, folder: str | Path) -> Iterator[IO[str] | None]:
    """Hold an output folder for this run, on the first process of a group; a killed run lets go of it.

    Programs outlive the torchrun or the demo that started them and was killed, for as long as it takes them
    to notice, and could write into a restarted run's folder. A restarted run waits for their end.

    Args:
        flag: that named the folder.
        folder: made where it is missing, removed at the end where it is empty then.

    Yields:
        The open file by which the folder is held; a program that inherits it holds the folder too. None on
        later processes.

    Raises:
        UserError: another run holds it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield None
        return
    path = Path(folder) / ".running"
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, f"{flag} {folder}") as file:
        file.truncate(0)
        starter = os.getppid() if _under_torchrun() else os.getpid()
        file.write(f"{os.getpid()} {starter}\n")
        file.flush()
        try:
            yield file
        finally:
            path.unlink(missing_ok=True)
            if made:  # a run that was refused leaves nothing behind
                with suppress(OSError):
                    path.parent.rmdir()


def _locked(path: Path, what: str) -> IO[str]:
    """Open and lock a file in which its holder writes its own number and that of the process it ends with."""
    told = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder, _, starter = file.read().strip().partition(" ")
            file.close()
            if not starter.isdigit() or _lives(int(starter)):
                raise UserError(
                    f"{what}: another run is writing there (process {holder}); end it first, or name another "
                    "folder"
                ) from None
            if not told:
                sys.stderr.write(f"{what}: waiting for the end of programs that a killed run left behind\n")
                told = True
            time.sleep(WATCH)
            continue
        except OSError:  # a file system without locks
            logger.info("%s: no locks on this file system", path.parent)
            return file
        # The last holder may have removed the file after it was opened here.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True
