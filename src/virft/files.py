"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virft.errors import UserError


def check_folder(flag: str, folder: str | Path) -> None:
    """Refuse a folder in which nothing can be written; it is not made yet.

    Args:
        flag: that named it, as the user wrote it.
        folder: where files are to go.

    Raises:
        UserError: it is a file, or lies where this user may not write.
    """
    place = Path(folder).absolute()
    if place.exists() and not place.is_dir():
        raise UserError(f"{flag} {folder} is a file; name a folder")
    above = next(parent for parent in (place, *place.parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {folder}: nothing can be written in {above}; name another folder")


def check_file(flag: str, path: str | Path) -> None:
    """Refuse a file that cannot be written: see :func:`check_folder`. Raises UserError naming the flag."""
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{flag} {path} is a folder; name a file")
    above = target.absolute().parent
    if above.exists() and not above.is_dir():
        raise UserError(f"{flag} {path}: {above} is a file; name another place")
    check_folder(f"{flag} {path}: folder", above)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` on success, remove it on any exception.

    The folder is made when absent. The rename is atomic: an interrupted program leaves the old file or none.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
