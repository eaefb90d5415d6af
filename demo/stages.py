"""Stages of a long program: each is done once, shown while it runs, and continued after an interruption."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from virft.errors import UserError
from virft.files import check_folder, replacing
from virft.programs import claimed, run_program

COMMAND_WIDTH = 100
"""Columns after which a command that is shown goes on in the next line."""
WIDTH = 24
"""Characters of a progress bar."""
QUIET_SECONDS = 20.0
"""Where the output is no terminal, a line of progress every so many seconds."""
LINE_ENDS = re.compile(rb"[\r\n]+")
TORCHRUN_FAILED = "torch/distributed/elastic/multiprocessing/api.py"
STEPS = re.compile(r"(\d+)/(\d+) \[")
"""The count in a tqdm bar, which is what every program here draws."""


class StageFailed(RuntimeError):
    """A program that a stage ran ended with an error. The message holds the end of what it said."""


@dataclass(frozen=True)
class Stage:
    """One stage of the plan.

    Attributes:
        name: of its folder and of its marker.
        title: what the reader sees.
        why: one line: what it is for.
        cost: seconds that it takes on four cores; only the shares matter, for the time left.
    """

    name: str
    title: str
    why: str
    cost: float


@dataclass
class Journal:
    """Runs a plan in a folder and remembers, in the folder ``stages``, what is done.

    A stage's key is a digest of its settings and of the keys of the stages that it builds on. A stage is
    skipped when its marker bears that key and says done, continued when it was begun with that key, else
    begun anew: also where its marker is damaged or its folder gone. A folder of a stage's name that no marker
    speaks for is somebody else's and stays.
    """

    folder: Path
    plan: Sequence[Stage]
    root: Path
    held: IO[str] | None = None
    _number: int = 0
    _keys: dict[str, str] = field(default_factory=dict)
    _spent: float = 0.0
    _expected: float = 0.0
    _started: float = 0.0
    _started_cpu: float = 0.0

    @contextmanager
    def opened(self) -> Iterator[Journal]:
        """Hold the folder for this program and what it starts.

        Raises:
            UserError: another one has it, nothing can be written there, or something that no run of this
                program made stands in a stage's place.
        """
        check_folder("--output", self.folder)
        with claimed("--output", self.folder) as self.held:
            for stage in self.plan:
                place = self.folder / stage.name
                if place.exists() and not (self.folder / "stages" / f"{stage.name}.json").exists():
                    raise UserError(
                        f"{place} stands where this program would write, and no run of it made that: "
                        "move it away, or give another --output"
                    )
            yield self

    def stage(
        self, name: str, settings: Mapping[str, Any], after: Sequence[str] | None = None
    ) -> tuple[Path, dict[str, Any] | None]:
        """Announce the next stage of the plan.

        Args:
            name: the stage's.
            settings: what its result depends on, as JSON.
            after: the stages that it builds on; by default the one before it in the plan.

        Returns:
            The stage's folder, and what :meth:`finish` recorded when it is done already, else None.
        """
        stage = self.plan[self._number]
        if stage.name != name:
            raise ValueError(f"the plan's next stage is {stage.name}, not {name}")
        if after is None:
            after = [before.name for before in self.plan[: self._number][-1:]]
        self._number += 1
        body = json.dumps([[self._keys[n] for n in after], name, settings], sort_keys=True, default=str)
        self._keys[name] = key = hashlib.sha256(body.encode()).hexdigest()
        say(f"\n[{self._number} of {len(self.plan)}] {stage.title}\n    {stage.why}\n")
        self._started, self._started_cpu = time.monotonic(), _cpu_seconds()
        folder, marker = self.folder / name, self.folder / "stages" / f"{name}.json"
        recorded = recorded_in(marker)
        gone = recorded.get("folder", False) and not folder.is_dir()
        if recorded.get("key") == key and recorded["done"] and not gone:
            say(f"    done before, in {clock(recorded['seconds'])}\n")
            return folder, recorded["result"]
        if recorded.get("key") != key:
            if folder.exists():
                shutil.rmtree(folder)
            self._record(stage, {"done": False})
        elif gone:
            say(f"    done before, but {folder} is gone: once more\n")
        elif folder.exists():
            say("    continuing where it was interrupted\n")
        return folder, None

    def finish(self, result: dict[str, Any] | None = None) -> dict[str, Any]:
        """Mark the stage as done and record its result, a JSON object, for later runs."""
        stage, seconds = self.plan[self._number - 1], time.monotonic() - self._started
        self._spent += seconds
        self._expected += stage.cost
        result = result or {}
        entry = {
            "done": True,
            "folder": (self.folder / stage.name).is_dir(),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(_cpu_seconds() - self._started_cpu, 1),
            "result": result,
        }
        self._record(stage, entry)
        say(f"    took {clock(seconds)}\n")
        return result

    def _record(self, stage: Stage, entry: dict[str, Any]) -> None:
        with replacing(self.folder / "stages" / f"{stage.name}.json") as temporary:
            temporary.write_text(json.dumps({"key": self._keys[stage.name]} | entry, indent=2) + "\n")

    def seconds(self, what: str = "seconds") -> dict[str, float]:
        """Stage -> seconds of the run that finished it: by the clock, or "cpu_seconds" of its processes."""
        files = {stage.name: self.folder / "stages" / f"{stage.name}.json" for stage in self.plan}
        entries = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
        return {name: entry[what] for name, entry in entries.items() if what in entry}

    def run(
        self,
        command: Sequence[str | Path],
        log: str,
        total: int,
        share: float = 1.0,
        watch: Mapping[str, str] | None = None,
        usual: int | None = None,
    ) -> Path:
        """Run a program of this project, show its progress, keep all that it says in ``logs/<log>.log``.

        Args:
            command: program and arguments, shown as they would be typed.
            log: name of the log, without its ending.
            total: the count at which the program's own bar ends; 0 for one without.
            share: the part of the stage's cost that this program has.
            watch: label -> pattern with one group; the latest matches are shown beside the bar.
            usual: the count at which a program usually ends that may end before ``total``.

        Returns:
            The log, to which this run's output was added.

        Raises:
            StageFailed: the program's exit code is not 0.
        """
        stage = self.plan[self._number - 1]
        words = [str(word) for word in command]
        say(f"    $ {self._typed(words)}\n")
        path = self.folder / "logs" / f"{log}.log"
        path.parent.mkdir(exist_ok=True)
        bar = Bar(total, stage.cost * share, self._left, watch or {}, usual)
        with open(path, "ab") as file:
            code, tail = self._follow(words, file, bar)
        bar.close(whole=not code)
        if code:
            raise StageFailed(
                f"stage {stage.name!r} failed (exit code {code}):\n\n"
                + "\n".join(f"    {line}" for line in tail)
                + f"\n\nAll of it: {path}"
            )
        return path

    def _follow(self, words: list[str], file: IO[bytes], bar: Bar) -> tuple[int, list[str]]:
        """Run to the end; the exit code, and the errors it named, else the last lines it wrote."""
        # The folder is the program's too: while it lives no second run starts there.
        held = (self.held.fileno(),) if self.held else ()
        process = subprocess.Popen(
            words,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=held,
        )
        unfinished = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
        tail, errors = deque[str](maxlen=100), deque[str](maxlen=10)
        try:
            with selectors.DefaultSelector() as streams:
                for stream in (process.stdout, process.stderr):
                    streams.register(stream, selectors.EVENT_READ)
                while streams.get_map():
                    for key, _ in streams.select(timeout=1.0):
                        chunk = os.read(key.fd, 65536)
                        if not chunk:
                            streams.unregister(key.fileobj)
                        file.write(chunk)
                        *lines, unfinished[key.fd] = LINE_ENDS.split(unfinished[key.fd] + chunk)
                        told = [line.decode(errors="replace") for line in lines if line.strip()]
                        bar.read(told)
                        told = [line for line in told if not STEPS.search(line)]
                        tail.extend(told)
                        errors.extend(line for line in told if line.startswith("error: "))
                    bar.draw()
            said = list(dict.fromkeys(errors)) or _before_torchrun(list(tail))[-25:]
            return process.wait(), said
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def count(self, total: int) -> Callable[[int, int], None]:
        """A bar for work that is done in this very process: call it with what is done and what is to do."""
        bar = Bar(total, self.plan[self._number - 1].cost, self._left, {})

        def shown(done: int, _: int) -> None:
            bar.advance(done)
            if done < total:
                bar.draw()
            else:
                bar.close()

        return shown

    def _left(self) -> float:
        """Seconds that the stages after the present one should take, at the speed seen so far."""
        pace = self._spent / self._expected if self._expected else 1.0
        return pace * sum(stage.cost for stage in self.plan[self._number :])

    def _typed(self, words: Sequence[str]) -> str:
        """The command as one would type it at the project's root with the environment active."""
        binaries = Path(sys.executable).parent
        shown = []
        for word in words:
            path = Path(word)
            if path.is_absolute() and path.parent == binaries:
                word = path.name
            elif path.is_absolute() and path.is_relative_to(self.root):
                word = str(path.relative_to(self.root))
            shown.append(shlex.quote(word))
        lines = [shown[0]]
        for word, after in zip(shown[1:], [*shown[2:], ""], strict=True):
            # A flag stays on the line of its value.
            needed = len(word) + (
                len(after) + 1 if word.startswith("--") and not after.startswith("--") else 0
            )
            if word.startswith("-") and len(lines[-1]) + needed > COMMAND_WIDTH:
                lines.append(f"    {word}")
            else:
                lines[-1] += f" {word}"
        return " \\\n      ".join(lines)


class Bar:
    """A line of progress: on a terminal one that changes, elsewhere a new one from time to time."""

    def __init__(
        self,
        total: int,
        cost: float,
        left_after: Callable[[], float],
        watch: Mapping[str, str],
        usual: int | None = None,
    ) -> None:
        """``left_after`` gives the seconds of the stages to come; the others are :meth:`Journal.run`'s."""
        self.usual = usual or total
        self.total, self.done, self.cost, self.left_after = total, 0, cost, left_after
        self.watch = {label: re.compile(pattern) for label, pattern in watch.items()}
        self.seen: dict[str, str] = {}
        self.started = self.first = time.monotonic()
        self.drawn, self.begun, self.whole = 0.0, 0, False
        self.terminal = sys.stdout.isatty()

    def read(self, lines: Sequence[str]) -> None:
        """Take the count and the watched values from what a program wrote."""
        for line in lines:
            for done, total in STEPS.findall(line):
                if int(total) == self.total:
                    self.advance(int(done))
            for label, pattern in self.watch.items():
                if found := pattern.findall(line):
                    self.seen[label] = found[-1]

    def advance(self, done: int) -> None:
        """Note that ``done`` of the total are done; never goes back."""
        if done > self.done:
            if not self.done:
                self.first, self.begun = time.monotonic(), done
            self.done = done

    def _remaining(self, now: float) -> float:
        """Seconds left of this program: from its own pace once it has one, before that from the plan."""
        if self.done >= self.usual:
            return 0.0
        if self.done > self.begun:
            return (now - self.first) / (self.done - self.begun) * max(0, self.usual - self.done)
        return max(0.0, self.cost - (now - self.started))

    def _counted(self) -> str:
        if self.usual == self.total:
            return f"{self.done}/{self.total}"
        return f"{self.done} steps" if self.whole else f"{self.done}/about {self.usual}"

    def draw(self, final: bool = False) -> None:
        """Show the present state, unless it was shown a moment ago."""
        if not self.total:
            return
        now = time.monotonic()
        if not final and now - self.drawn < (0.5 if self.terminal else QUIET_SECONDS):
            return
        if not self.terminal and not self.drawn and not final:
            self.drawn = now  # the command itself has just been shown
            return
        self.drawn = now
        filled = WIDTH if self.whole else min(WIDTH - 1, round(WIDTH * self.done / self.usual))
        parts = [f"    {'█' * filled}{'░' * (WIDTH - filled)} {self._counted()}"]
        parts.append(clock(now - self.started))
        if not final:
            left = self._remaining(now)
            parts.append(f"{clock(left)} left, the whole run {clock(left + self.left_after())}")
        parts += [f"{label} {value}" for label, value in self.seen.items()]
        line = "  ".join(parts)
        # A line that wraps could not be drawn over.
        say(f"\r\x1b[2K{line[: shutil.get_terminal_size().columns - 1]}" if self.terminal else line + "\n")

    def close(self, whole: bool = True) -> None:
        """Leave the last state on the screen: a full bar where the work is ``whole``."""
        self.whole = whole
        if whole and self.usual == self.total:
            self.done = self.total  # continued work may have had nothing left to count
        self.draw(final=True)
        if self.total and self.terminal:
            say("\n")


def _before_torchrun(lines: list[str]) -> list[str]:
    """What a program said before torchrun began its page about a process that failed."""
    start = next((n for n, line in enumerate(lines) if TORCHRUN_FAILED in line), len(lines))
    return lines[:start] or lines


def _cpu_seconds() -> float:
    """CPU time of this process and of all that it has waited for, and of theirs."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def run_to_the_end(work: Callable[[], None]) -> int:
    """Do ``work``; what went wrong becomes a line and an exit code: 2 what the user must mend (as
    :func:`virft.programs.run_program` has it), 1 a stage that failed, 130 an interruption.

    A polite end (kill, a closed terminal) is treated like Ctrl-C: what runs below is ended too.
    """
    for polite in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(polite) != signal.SIG_IGN:  # nohup
            signal.signal(polite, signal.default_int_handler)
    sys.stdout.reconfigure(errors="replace")
    codes = []

    def ended() -> None:
        try:
            work()
        except StageFailed as error:
            sys.stderr.write(f"\nerror: {error}\n")
            codes.append(1)
        except KeyboardInterrupt:
            say("\nInterrupted. Run the same command again: it continues from here.\n")
            codes.append(130)

    run_program(ended)
    return codes[0] if codes else 0


def checked_output(folder: Path) -> Path:
    """The folder of ``--output``, absolute. Raises UserError where nothing can be written in it."""
    folder = folder.expanduser().resolve()
    check_folder("--output", folder)
    return folder


def distinct(flag: str, values: Sequence[Any]) -> None:
    """Refuse a value that stands twice behind a flag. Raises UserError."""
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{flag}: {value} stands there twice; leave one out")


def whole_number(least: int) -> Callable[[str], int]:
    """The type of a flag whose value is a whole number from ``least`` on, for argparse."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return read


def recorded_in(file: Path) -> dict[str, Any]:
    """A JSON object that an earlier run left; empty where there is none, or what stands there is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def say(text: str) -> None:
    """Write to the reader, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def clock(seconds: float) -> str:
    """Minutes and seconds, as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
