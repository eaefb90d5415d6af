"""What is compared: the model and rows of a preset, or the user's own, and the rules for everybody."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import miniature
from contest import Method, RowSet, Rules
from machine import TINY, Machine
from presets import PRESETS, Preset, rft, sft
from scores import COLUMNS, ROWS, SUITE_OF
from stages import Journal, Stage

from virft.data.digits import CLASSIFICATION_SUBJECT
from virft.errors import UserError

NUMBERS = {
    "steps": "steps",
    "every": "eval_every",
    "rows_per_step": "rows_per_step",
    "rows_at_once": "rows_at_once",
    "tokens": "max_completion_length",
    "answering": "batch_size",
}
"""Number of the rules -> the flag that replaces it."""
OWN_NUMBERS = {
    "steps": 200,
    "every": 20,
    "rows_per_step": 16,
    "rows_at_once": 0,
    "tokens": 1024,
    "answering": 8,
}
"""For a model of one's own, which no preset speaks for."""
FILES = (".json", ".jsonl", ".csv", ".parquet")
OWN = ("task", "model", "rows", "validation", "test", "suite", "suite_flags", "train_flags")
"""Flags that speak of a model and rows of one's own."""


@dataclass(frozen=True)
class Task:
    """The contests of one seed.

    Attributes:
        name, about: in the table and the picture.
        rules: for all methods; ``rows_at_once`` 0 is a process's share of a step.
        methods: who competes.
        sets: names of the row sets; one contest for each.
        stages: of the journal, before the contests.
        made_by: those of them that make model and rows; when one is done anew, so is all that follows.
        prepare: runs them; gives the model and the row sets.
        own: whether model and rows are the user's own.
    """

    name: str
    about: str
    rules: Rules
    methods: tuple[Method, ...]
    sets: tuple[str, ...]
    stages: tuple[Stage, ...]
    made_by: tuple[str, ...]
    prepare: Callable[[Journal, Machine], tuple[str, list[RowSet]]]
    own: bool = False


def from_preset(name: str, preset: Preset, folder: Path, seed: int) -> Task:
    """The contests of a miniature that is made in ``folder``."""
    digits = folder / "digits"
    heldout = digits / "heldout"
    coco = ("--annotations", f"{heldout}.json", "--image_folder", str(digits))
    named = ("--contains", CLASSIFICATION_SUBJECT[0], "--to_name", CLASSIFICATION_SUBJECT[1])
    examination = {
        "detection": (*coco, "--candidates", "ground_truth", "--logprobs", "true"),
        "classification": ("--dataset", str(heldout), *named),
    }
    rules = Rules(
        task=preset.task,
        steps=preset.steps,
        every=preset.every,
        rows_per_step=preset.rows_per_step,
        rows_at_once=0,
        tokens=preset.tokens,
        answering=64,
        train_flags=(*map(str, miniature.ADAM), *TINY),
        suite=SUITE_OF[preset.task],
        suite_flags=(*examination[preset.task], "--dtype", "float32"),
    )
    sets = tuple(f"{shots}-shot" for shots in preset.shots)

    def prepare(journal: Journal, machine: Machine) -> tuple[str, list[RowSet]]:
        splits = preset.splits(seed)
        model = miniature.make(
            journal, machine, splits, preset.warmup, preset.tokens, seed, "warmup_validation"
        )
        validation = str(digits / "validation.jsonl")
        return str(model), [RowSet(name, str(digits / f"{name}.jsonl"), validation) for name in sets]

    made_by = tuple(stage.name for stage in miniature.PLAN)
    return Task(name, preset.about, rules, preset.methods, sets, miniature.PLAN, made_by, prepare)


def from_flags(flags: argparse.Namespace, seed: int) -> Task:
    """The contest of the user's own model and rows. Raises UserError naming a flag."""
    _check_own(flags)
    rows, validation = (text.replace("{seed}", str(seed)) for text in (flags.rows, flags.validation))
    held_out = (validation, *([flags.test] if flags.test else []))
    for path in (rows, *held_out):
        if path.endswith(FILES) and not Path(path).is_file():
            raise UserError(f"{path}: no such file")
    suite_flags = ("--dataset", flags.test, "--task", flags.task)
    if not flags.test:
        suite_flags = _words("suite_flags", flags.suite_flags)
    rules = Rules(
        task=flags.task,
        **OWN_NUMBERS,
        train_flags=_words("train_flags", flags.train_flags),
        suite=ROWS if flags.test else flags.suite or SUITE_OF[flags.task],
        suite_flags=suite_flags,
        suite_content=_content(suite_flags),
    )
    row_set = RowSet("", rows, validation, content=_content((rows, validation, flags.model)))
    check = Stage(
        "rows",
        "The rows are checked",
        "readable images and solutions, and no image both trained on and held out",
        5,
    )

    def prepare(journal: Journal, machine: Machine) -> tuple[str, list[RowSet]]:
        named = {"rows": [rows, *held_out], "task": flags.task, "content": _content((rows, *held_out))}
        _, done = journal.stage("rows", named)
        if done is None:
            program = [sys.executable, "-m", "virft.data.validate"]
            # Every file by itself, and against those after it: rows that choose a model must not examine it.
            for number, file in enumerate((rows, *held_out)):
                others = held_out[number:] or (None,)
                for other in others:
                    more = ["--held_out", other] if other else []
                    journal.run([*program, file, "--task", flags.task, *more], "rows", 0)
            journal.finish()
        return flags.model, [row_set]

    methods = (sft("3e-6", "1e-5", "3e-5", remember=False), rft("1e-6", "3e-6"))
    about = f"{flags.model} on {flags.rows}"
    return Task(Path(rows).stem, about, rules, methods, ("",), (check,), (), prepare, own=True)


def _check_own(flags: argparse.Namespace) -> None:
    """Refuse flags of a model of one's own that are missing or contradict one another. Raises UserError."""
    given = [name for name in OWN if getattr(flags, name)]
    for other in ("preset", "shots", "short"):
        if getattr(flags, other):
            raise UserError(f"--{other} is for the digit scans; leave it out beside --{given[0]}")
    missing = [f"--{name}" for name in ("task", "model", "rows", "validation") if name not in given]
    if missing:
        raise UserError(
            f"{', '.join(missing)} missing: a model of your own (--{given[0]}) needs --task, --model, "
            f"--rows and --validation; or choose a --preset ({', '.join(PRESETS)})"
        )
    if bool(flags.test) == bool(flags.suite_flags):
        raise UserError("give one examination: --test FILE of rows, or --suite_flags for a suite's own data")
    if flags.suite and flags.test:
        raise UserError("--suite is for a suite's own data; leave it out beside --test")
    fitting = [name for name, each in COLUMNS.items() if each == COLUMNS[SUITE_OF[flags.task]]]
    if flags.suite and flags.suite not in fitting:
        raise UserError(
            f"--suite {flags.suite} does not examine --task {flags.task}; choose {' or '.join(fitting)}"
        )


def _words(flag: str, text: str) -> tuple[str, ...]:
    """The flags that stand in one string. Raises UserError where its quotes do not close."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"--{flag}: {text!r} cannot be read ({error}); close its quotes") from None


def _content(names: Iterable[str]) -> str:
    """A digest of the files among the names, and of the models; other words count as nothing.

    What is trained and examined anew follows from it: a file may change and keep its name. A model may be
    gigabytes of weights, so that sizes and times of its files stand for them.
    """
    found: dict[str, Any] = {}
    for name in names:
        path = Path(name)
        if path.is_file():
            with open(path, "rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        elif path.is_dir():
            files = sorted(file for end in ("json", "safetensors") for file in path.glob(f"*.{end}"))
            found[name] = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def adjusted(task: Task, flags: argparse.Namespace) -> Task:
    """The task with the numbers, learning rates and further flags that the command line names."""
    numbers = {name: getattr(flags, flag) for name, flag in NUMBERS.items() if getattr(flags, flag)}
    rates = {"sft.py": flags.sft_rates, "grpo.py": flags.rft_rates}
    more = {"sft.py": _words("sft_flags", flags.sft_flags), "grpo.py": _words("rft_flags", flags.rft_flags)}
    methods = tuple(
        replace(m, rates=tuple(rates[m.program] or m.rates), flags=(*m.flags, *more[m.program]))
        for m in task.methods
    )
    return replace(task, rules=replace(task.rules, **numbers), methods=methods)
