"""Is RFT better than SFT on the same rows? One command, one answer with its interval.

    bash scripts/compare_sft_rft.sh                            # installs, then runs this program
    python demo/compare_sft_rft.py --preset classification     # k-shot naming of digits, three seeds
    python demo/compare_sft_rft.py --preset confidence --seeds 0
    python demo/compare_sft_rft.py --short                     # every stage once; learns nothing

Your own model and rows (JSONL with problem, solution, image; see README, "Your own data"):

    python demo/compare_sft_rft.py --task detection --model Qwen/Qwen2-VL-2B-Instruct \\
        --rows train.jsonl --validation validation.jsonl --test test.jsonl \\
        --train_flags "--deepspeed local_scripts/zero3.json --bf16 true" --processes 8

In place of --test, a suite with its own data: --suite_flags "--annotations val.json --image_folder val2017".

Both methods start from the same model and get the same rows, prompts, pixel budget, number of steps and
validation rows; each is trained once for each of its learning rates. Four models sit the examination beside
the base: the last and the best of either method. Run it again after an interruption: it continues where it
was. Several of these programs may work on one --output, each on its own --seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comparison
import self_labelled
from contest import BASE, Contest, RowSet, examine
from machine import ROOT, Machine
from presets import PRESETS
from scores import COLUMNS, SUITE_OF
from stages import (
    Journal,
    Stage,
    checked_output,
    distinct,
    recorded_in,
    run_to_the_end,
    say,
    whole_number,
)
from tasks import OWN, Task, adjusted, from_flags, from_preset

from virft.checkpoint import installed_versions
from virft.files import replacing

COSTS = {"sft.py": 40.0, "grpo.py": 120.0, "examination": 12.0}
"""Seconds on four cores with the presets; for a model of one's own only the shares matter."""
DEFAULT = "confidence"


def run_seed(folder: Path, seed: int, task: Task, machine: Machine) -> dict[str, Any]:
    """One seed: prepare, examine the base, one contest for each row set. Raises StageFailed, UserError."""
    rules = task.rules.settled(machine)
    rivals = [m for m in task.methods if m.labels == "self"]
    plan = [*task.stages, Stage(BASE, "Examination of the base", "the numbers to beat", COSTS["examination"])]
    for name in task.sets:
        if rivals:
            plan.append(self_labelled.stage(name, COSTS["examination"]))
        plan += Contest.plan(task.methods, RowSet(name, "", ""), COSTS)
    # Relative paths among the user's own flags begin where the user stands.
    with Journal(folder, plan, Path.cwd() if task.own else ROOT).opened() as journal:
        model, row_sets = task.prepare(journal, machine)
        made = task.made_by
        place, done = journal.stage(BASE, {"model": model, "rules": rules.of_examination()}, made)
        if done is None:
            examine(journal, rules, model, place, "base-examination")
            journal.finish()
        contests = {}
        for rows in row_sets:
            begun = list(made)
            if rivals:
                rows = self_labelled.make(journal, rules, model, rows, made)
                begun.append(self_labelled.stage_name(rows.name))
            contest = Contest(journal, machine, rules, task.methods, rows, model, seed, begun)
            contests[rows.name] = contest.run(place)
        return {
            "seed": seed,
            "base": str(place),
            "sets": contests,
            "rules": rules.of_training(),
            "seconds": journal.seconds(),
            "cpu_seconds": journal.seconds("cpu_seconds"),
        }


def parser() -> argparse.ArgumentParser:
    """The program's flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    abouts = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
    flags.add_argument(
        "--preset", choices=list(PRESETS), help=f"a contest on digit scans ({abouts}); default: {DEFAULT}"
    )
    flags.add_argument("--shots", type=whole_number(1), nargs="+", help="rows a class; a preset's row sets")
    flags.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0, 1, 2], help="(0 1 2)")
    flags.add_argument("--output", type=Path, help="folder (comparison/NAME)")
    flags.add_argument("--short", action="store_true", help="touch every stage; learns nothing")
    for name, meaning in (
        ("processes", "of a training; default: 1 on a GPU machine, 2 on a CPU"),
        ("steps", "optimizer steps of every training"),
        ("eval_every", "ask the validation rows every so many steps"),
        ("rows_per_step", "rows (GRPO: prompts) a step, over all processes"),
        ("rows_at_once", "rows a process takes at once; the rest accumulates"),
        ("max_completion_length", "longest reply in tokens (a model of your own: 1024)"),
        ("batch_size", "questions a batch when a model is asked (a model of your own: 8)"),
    ):
        flags.add_argument(f"--{name}", type=whole_number(1), help=meaning)
    for method, title in (("sft", "SFT"), ("rft", "GRPO")):
        meaning = f"learning rates that {title} tries"
        flags.add_argument(f"--{method}_rates", nargs="+", type=_rate, metavar="RATE", help=meaning)
    flags.add_argument("--sft_flags", default="", help="further flags of sft.py, in one string")
    flags.add_argument("--rft_flags", default="", help="further flags of grpo.py, in one string")
    own = flags.add_argument_group("your own model and rows")
    own.add_argument("--task", choices=list(SUITE_OF))
    own.add_argument("--model", help="folder or Hub id that both methods start from")
    own.add_argument("--rows", help="training rows; {seed} in the path stands for the seed")
    own.add_argument(
        "--validation", help="rows that choose the learning rate and the best step; never trained on"
    )
    own.add_argument("--test", help="rows of the examination; or name a suite's own data with --suite_flags")
    own.add_argument("--suite", choices=list(COLUMNS), help="of virft.evaluate; default: the task's")
    own.add_argument("--suite_flags", help="its flags, in one string: which annotations, images, categories")
    own.add_argument("--train_flags", default="", help="flags of both training programs, in one string")
    return flags


def _rate(text: str) -> str:
    """A learning rate as it was written: it names folders, and stands in commands."""
    try:
        good = 0 < float(text) < math.inf
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{text!r} is no learning rate; write a number above 0 such as 1e-5")
    return text


def chosen(flags: argparse.Namespace) -> tuple[Callable[[int], Task], Path]:
    """Seed -> its task, and the folder of everything. Raises UserError naming a flag."""
    for flag in ("seeds", "shots", "sft_rates", "rft_rates"):
        distinct(f"--{flag}", getattr(flags, flag) or ())
    own = any(getattr(flags, flag) for flag in OWN)
    name = Path(flags.rows or "own").stem.replace("{seed}", "") if own else flags.preset or DEFAULT
    folder = checked_output(flags.output or ROOT / "comparison" / name)
    if own:
        return lambda seed: adjusted(from_flags(flags, seed), flags), folder
    preset = PRESETS[name]
    if flags.shots:
        preset = replace(preset, shots=tuple(flags.shots))
    if flags.short:
        preset = preset.short()
    return lambda seed: adjusted(from_preset(name, preset, _of(folder, seed), seed), flags), folder


def _forget_other_results(output: Path, task: Task) -> None:
    """A table of another contest must not stand there while this one is under way."""
    before = recorded_in(output / "results.json")
    now = {"name": task.name, "about": task.about, "suite": task.rules.suite}
    if before and now != {name: before.get(name) for name in now}:
        for name in ("results.json", "table.md", "comparison.png"):
            (output / name).unlink(missing_ok=True)


def _of(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    flags = parser().parse_args(arguments)
    return run_to_the_end(lambda: compare(flags))


def compare(flags: argparse.Namespace) -> None:
    """Every seed's contest, then their table and picture. Raises as :class:`stages.Journal` does."""
    task_of, output = chosen(flags)
    machine = Machine.found(flags.processes)
    # What is wrong with the last seed is said before the first one has worked for hours.
    tasks = {seed: task_of(seed) for seed in flags.seeds}
    for task in tasks.values():
        task.rules.settled(machine)
    task = tasks[flags.seeds[0]]
    _forget_other_results(output, task)
    say(f"SFT against RFT: {task.about}\nresults in {output}\n\n")
    say(machine.prepare(offline=not flags.model))
    runs = []
    for seed in flags.seeds:
        say(f"\n=== seed {seed} ===\n")
        runs.append(run_seed(_of(output, seed), seed, tasks[seed], machine))
    results = comparison.results(task.name, task.about, task.rules.suite, task.rules.task, task.methods, runs)
    results["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {machine.processes} processes"
    results["versions"] = {"python": platform.python_version(), **installed_versions()}
    with replacing(output / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")
    table = comparison.table(results)
    with replacing(output / "table.md") as temporary:
        temporary.write_text(table + "\n")
    comparison.draw(results, output / "comparison.png")
    say(f"\n{table}\n\nAlso in {output}: table.md, results.json, comparison.png\n")


if __name__ == "__main__":
    sys.exit(main())
