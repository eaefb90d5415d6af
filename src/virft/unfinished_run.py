"""The folder of an inference run that is not finished: a file of predictions a rank, and how far all are."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from virft.errors import UserError
from virft.types import Prediction

PARTIAL_SUFFIX = ".partial"
LOCK_SECONDS = 15.0
POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that was left out because its image cannot be read."""

    id: str
    reason: str


@contextmanager
def own_file(path: Path) -> Iterator[Any]:
    """Open a rank's file for appending, alone, with a torn last line cut off.

    Raises:
        UserError: another process still writes to it.
    """
    with open(path, "a+b") as raw:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(raw, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{path} is being written by another process; wait for that run or end it"
                    ) from error
                time.sleep(POLL_SECONDS)
        raw.seek(0)
        content = raw.read()
        raw.truncate(content.rfind(b"\n") + 1)
        with open(path, "a", encoding="utf-8") as file:
            yield file


def is_written(folder: Path) -> bool:
    """Whether a process holds one of the folder's files by :func:`own_file`."""
    for path in folder.glob("rank-*.jsonl"):
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def read_entries(folder: Path) -> Iterator[Prediction | Skipped]:
    """All complete lines of a run's folder.

    A last line without its end is what a kill left: it is not yet an entry (its owner cuts it off).

    Raises:
        UserError: a complete line that cannot be read: something else wrote into the file.
    """
    for path in sorted(folder.glob("rank-*.jsonl")):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                entry = json.loads(line)
                skipped = entry.get("skipped")
                yield Skipped(**skipped) if skipped else Prediction.from_json(entry)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path}, line {number}, cannot be read; delete the line or start with --overwrite"
                ) from error


class Progress:
    """A bar with the time left over all ranks, counted from the lines in the run's folder."""

    def __init__(self, folder: Path, total: int) -> None:
        self.folder, self.total = folder, total
        self.offsets: dict[Path, int] = {}
        self.last = 0.0
        self.done = 0
        self._count()
        # At a terminal several times a second, in a log file twice a minute.
        interval = 0.2 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(total=total, initial=self.done, unit="question", mininterval=interval)

    def poll(self, force: bool = False) -> bool:
        """Show how far all ranks are; True where every sample has its line."""
        if force or time.monotonic() - self.last > POLL_SECONDS:
            self._count()
            self.bar.update(self.done - self.bar.n)
            self.last = time.monotonic()
        return self.done >= self.total

    def close(self) -> None:
        """Show the last state and leave the bar standing."""
        self.bar.close()

    def _count(self) -> None:
        for path in self.folder.glob("rank-*.jsonl"):
            offset = self.offsets.get(path, 0)
            with open(path, "rb") as file:
                file.seek(offset)
                new = file.read()
            # A torn line is cut off later: only complete lines move the offset.
            self.done += new.count(b"\n")
            self.offsets[path] = offset + new.rfind(b"\n") + 1
