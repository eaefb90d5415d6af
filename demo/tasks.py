"""What is compared: the model and rows of a preset, or the user's own, and the rules for everybody."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import miniature
from contest import Method, RowSet, Rules
from machine import TINY, Machine
from presets import PRESETS, Preset, rft, sft
from scores import ROWS, SUITE_OF
from stages import Journal, Stage

from virft.data.digits import CLASSIFICATION_SUBJECT
from virft.errors import UserError

NUMBERS = {
    "steps": "steps",
    "every": "eval_every",
    "rows_per_step": "rows_per_step",
    "rows_at_once": "rows_at_once",
    "tokens": "max_completion_length",
}
"""Number of the rules -> the flag that replaces it."""
OWN_NUMBERS = {"steps": 200, "every": 20, "rows_per_step": 16, "rows_at_once": 0, "tokens": 1024}
"""For a model of one's own, which no preset speaks for."""
FILES = (".json", ".jsonl", ".parquet")


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
    """

    name: str
    about: str
    rules: Rules
    methods: tuple[Method, ...]
    sets: tuple[str, ...]
    stages: tuple[Stage, ...]
    made_by: tuple[str, ...]
    prepare: Callable[[Journal, Machine], tuple[str, list[RowSet]]]


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
    needed = ("task", "model", "rows", "validation")
    missing = [f"--{name}" for name in needed if not getattr(flags, name)]
    if missing:
        raise UserError(
            f"{', '.join(missing)} missing: a model of your own needs "
            f"{', '.join('--' + n for n in needed)}; or choose a --preset ({', '.join(PRESETS)})"
        )
    if bool(flags.test) == bool(flags.suite_flags):
        raise UserError("give one examination: --test FILE of rows, or --suite_flags for a suite's own data")
    for given in ("preset", "shots", "short"):
        if getattr(flags, given):
            raise UserError(f"--{given} is for the digit scans; leave it out beside --model and --rows")
    rows = RowSet("", flags.rows.format(seed=seed), flags.validation.format(seed=seed))
    for path in (rows.rows, rows.validation, *([flags.test] if flags.test else [])):
        if path.endswith(FILES) and not Path(path).is_file():
            raise UserError(f"{path}: no such file")
    rules = Rules(
        task=flags.task,
        **OWN_NUMBERS,
        answering=flags.batch_size,
        train_flags=tuple(shlex.split(flags.train_flags)),
        suite=ROWS if flags.test else flags.suite or SUITE_OF[flags.task],
        suite_flags=("--dataset", flags.test, "--task", flags.task)
        if flags.test
        else tuple(shlex.split(flags.suite_flags)),
    )
    check = Stage(
        "rows",
        "The rows are checked",
        "readable images and solutions, and no image both trained on and held out",
        5,
    )

    def prepare(journal: Journal, machine: Machine) -> tuple[str, list[RowSet]]:
        _, done = journal.stage("rows", {"rows": [rows.rows, rows.validation, flags.test]})
        if done is None:
            command = [sys.executable, "-m", "virft.data.validate", rows.rows, "--task", flags.task]
            for held_out in (rows.validation, *([flags.test] if flags.test else [])):
                journal.run([*command, "--held_out", held_out], "rows", 0)
            journal.finish()
        return flags.model, [rows]

    methods = (sft("3e-6", "1e-5", "3e-5", remember=False), rft("1e-6", "3e-6"))
    about = f"{flags.model} on {flags.rows}"
    return Task(Path(rows.rows).stem, about, rules, methods, ("",), (check,), (), prepare)


def adjusted(task: Task, flags: argparse.Namespace) -> Task:
    """The task with the numbers, learning rates and further flags that the command line names."""
    numbers = {name: getattr(flags, flag) for name, flag in NUMBERS.items() if getattr(flags, flag)}
    rates = {"sft.py": flags.sft_rates, "grpo.py": flags.rft_rates}
    more = {"sft.py": shlex.split(flags.sft_flags), "grpo.py": shlex.split(flags.rft_flags)}
    methods = tuple(
        replace(m, rates=tuple(rates[m.program] or m.rates), flags=(*m.flags, *more[m.program]))
        for m in task.methods
    )
    return replace(task, rules=replace(task.rules, **numbers), methods=methods)
