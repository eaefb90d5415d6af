"""Where a set is built: a folder that is held while it is, and a place in which it appears whole or not at
all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virft.errors import UserError
from virft.files import replacing

MANIFEST_SUFFIX = ".manifest.json"
"""Of the file beside a set that says what it was made from."""
INDEX_FAULTS = (
    "disk I/O error",
    "unable to open database file",
    "attempt to write a readonly database",
    "database is locked",
)
"""What SQLite says of a disk that does not take the index; its other errors are mistakes of ours."""


@contextmanager
def replacing_tree(path: Path) -> Iterator[Path]:
    """As :func:`virft.files.replacing`, for a file or a folder."""
    if path.suffix:
        with replacing(path) as unfinished:
            yield unfinished
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A folder is not removed in one step: it must be out of sight before.
    old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    try:
        yield unfinished
        if path.is_dir():
            path.rename(old)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def naming_disk_faults(folder: Path) -> Iterator[None]:
    """Turn the errors of a full disk, and of a folder that cannot be made or written, into one sentence.

    Raises:
        UserError: naming the disk or the path.
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(error):
            raise UserError(
                f"{folder}: the disk is full; nothing of the set was left there: free space, or name another "
                "--output, or another --work_folder for the index"
            ) from error
        if code is None and str(error) in INDEX_FAULTS:
            raise UserError(
                f"{folder}: the index cannot be written ({error}): is a quota or a size limit reached? "
                "name another --work_folder for it"
            ) from error
        if code is None:
            raise
        raise UserError(f"{error.filename or folder}: {error.strerror}; name another --output") from error


@contextmanager
def working_folder(target: Path, parent: Path | None = None) -> Iterator[Path]:
    """A folder for temporary files of the build of ``target``; what a killed build left in it is removed.

    Args:
        target: the set.
        parent: where to make the folder; by default beside the set.

    Raises:
        UserError: another process builds the same set.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = folder = target.parent / f".{target.name}.build"
    beside.mkdir(exist_ok=True)
    with open(beside / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{target}: another process is building it ({beside} is locked)") from None
        try:
            if parent is not None:
                # Sets of one name from several folders may be built in one place.
                where = hashlib.sha256(os.fsencode(target.resolve())).hexdigest()[:8]
                folder = parent / f".{target.name}.{where}.build"
                folder.mkdir(parents=True, exist_ok=True)
            _remove_stale(target, folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(beside, ignore_errors=True)


def _remove_stale(target: Path, folder: Path) -> None:
    """Remove what a killed build of ``target`` left beside it and in its working folder."""
    # Not a glob: the name may hold a bracket, and ".a.*" would also be what a build of a.jsonl is writing.
    ours = re.compile(
        rf"\.{re.escape(target.name)}({re.escape(MANIFEST_SUFFIX)})?\.\d+(\.old)?\.tmp(\.cache)?"
    )
    stale = [path for path in target.parent.iterdir() if ours.fullmatch(path.name)]
    for path in (*stale, *(path for path in folder.iterdir() if path.name != "lock")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
