"""A contest of training methods: the same model, rows, validation rows and examination for everybody.

Every method is trained once for each of its learning rates, for the same number of steps, and asked about the
validation rows as it goes. Two of its models sit the examination: ``end``, the last weights of the rate that
is best at the last step, and ``best``, the weights of the best step of all rates. A method that never gets
above the model it began with has that model as its best.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from machine import Machine
from miniature import validation_pattern
from stages import Journal, Stage, say

from virft.checkpoint import last_checkpoint
from virft.errors import UserError
from virft.metrics.rows import MAIN_METRIC

BASE = "base"
CHOICES = ("end", "best")


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        name: of its folders.
        title: in tables and pictures.
        program: of ``src/virft``: sft.py or grpo.py.
        rates: learning rates to try.
        flags: further flags of the program.
        labels: "given", or "self": the rows of :mod:`self_labelled`.
    """

    name: str
    title: str
    program: str
    rates: tuple[str, ...]
    flags: tuple[str, ...] = ()
    labels: str = "given"


@dataclass(frozen=True)
class Rules:
    """What holds for every method.

    Attributes:
        task: detection, classification or grounding.
        steps: optimizer steps.
        every: the validation rows are asked every so many steps.
        rows_per_step: rows (GRPO: prompts) a step over all processes.
        rows_at_once: rows that one process takes at once; the rest is accumulated.
        tokens: longest reply.
        answering: questions a batch when a model is asked.
        train_flags: for every training program.
        suite, suite_flags: the examination: a suite of ``virft.evaluate`` and its flags.
        suite_content: what tells the files that these flags name from others of the same names.
    """

    task: str
    steps: int
    every: int
    rows_per_step: int
    rows_at_once: int
    tokens: int
    answering: int
    train_flags: tuple[str, ...]
    suite: str
    suite_flags: tuple[str, ...]
    suite_content: str = ""

    def of_training(self) -> dict[str, Any]:
        """What a training depends on: another examination is no reason to train again."""
        return {k: v for k, v in asdict(self).items() if not k.startswith("suite")}

    def of_examination(self) -> dict[str, Any]:
        """What an examination depends on."""
        named = {"suite_content": self.suite_content} if self.suite_content else {}
        return {k: getattr(self, k) for k in ("suite", "suite_flags", "tokens")} | named

    def settled(self, machine: Machine) -> Rules:
        """The rules with ``rows_at_once`` chosen. Raises UserError where numbers do not fit together."""
        if not self.rows_at_once and self.rows_per_step % machine.processes:
            raise UserError(
                f"--rows_per_step {self.rows_per_step} must be a multiple of the {machine.processes} "
                "processes of a training; change it, or --processes"
            )
        at_once = self.rows_at_once or machine.per_process(self.rows_per_step)
        rules = replace(self, rows_at_once=at_once)
        rules.check(machine)
        return rules

    def check(self, machine: Machine) -> None:
        """Refuse numbers that do not fit together. Raises UserError naming the flags."""
        if self.steps % self.every:
            raise UserError(
                f"--steps {self.steps} must be a multiple of --eval_every {self.every}: "
                "the last step is validated too"
            )
        together = self.rows_at_once * machine.processes
        if self.rows_per_step % together:
            raise UserError(
                f"--rows_per_step {self.rows_per_step} must be a multiple of --rows_at_once x processes "
                f"({self.rows_at_once} x {machine.processes})"
            )


@dataclass(frozen=True)
class RowSet:
    """Rows to train on and their name; an empty name where there is one set only.

    ``content`` tells rows and model of the user's own from others of the same names.
    """

    name: str
    rows: str
    validation: str
    self_labelled: str | None = None
    content: str = ""

    def taught(self, labels: str) -> str:
        """The file that a method with these labels trains on."""
        return self.self_labelled if labels == "self" and self.self_labelled else self.rows


@dataclass(frozen=True)
class Trial:
    """One training: where it stands and its validation values, step -> value; step 0 is before training."""

    method: str
    rate: str
    folder: Path
    values: Mapping[int, float]

    @cached_property
    def best_step(self) -> int:
        """The first of the steps with the highest value; 0 where training never helped."""
        return max(self.values, key=lambda step: (self.values[step], -step))

    @property
    def last_step(self) -> int:
        """The step at which it ended."""
        return max(self.values)

    def weights(self, step: int, base: str) -> str:
        """The model at a step: 0, the best or the last; others are not kept."""
        if step == 0:
            return base
        if step == self.last_step:
            return str(self.folder / f"checkpoint-{step}")
        if step == self.best_step:
            return str(self.folder)  # the program ends with its best weights
        raise ValueError(f"{self.folder} keeps the steps {self.best_step} and {self.last_step}, not {step}")


@dataclass(frozen=True)
class Contestant:
    """A model that sits the examination: ``base``, or a method's ``end`` or ``best``."""

    name: str
    method: str
    model: str
    rate: str
    step: int
    validation: float


class Contest:
    """The contest of one row set from one model, with one seed."""

    def __init__(
        self,
        journal: Journal,
        machine: Machine,
        rules: Rules,
        methods: Sequence[Method],
        rows: RowSet,
        model: str,
        seed: int,
        after: Sequence[str] = (),
    ) -> None:
        """``after``: the journal's stages that made the model and the rows."""
        self.journal, self.machine, self.rules, self.methods = journal, machine, rules, methods
        self.rows, self.model, self.seed, self.after = rows, model, seed, after

    @staticmethod
    def plan(methods: Sequence[Method], rows: RowSet, costs: Mapping[str, float]) -> Iterator[Stage]:
        """The stages of :meth:`run`, with the seconds of a training of each program and an examination."""
        of = f" of {rows.name}" if rows.name else ""
        for method in methods:
            for rate in method.rates:
                why = f"learning rate {rate}; validated as it goes"
                cost = costs[method.program]
                yield Stage(_stage(rows, method.name, rate), f"{method.title} on the rows{of}", why, cost)
        examined = len(CHOICES) * len(methods)
        why = "what each method ended with, and its best by validation"
        yield Stage(_stage(rows, "examination"), "Examination", why, costs["examination"] * examined)

    def run(self, base_examination: Path) -> dict[str, Any]:
        """Train, choose, examine.

        Args:
            base_examination: where :func:`examine` put the base's numbers; a best that is the base has them.

        Returns:
            ``trials``: method, rate, validation values; ``contestants``: name -> what was chosen and the
            folder of its examination.
        """
        trials = [self._train(m, rate) for m in self.methods for rate in m.rates]
        chosen = [c for m in self.methods for c in self.choose([t for t in trials if t.method == m.name])]
        stated = [(c.name, c.model) for c in chosen]
        folder, done = self.journal.stage(
            _stage(self.rows, "examination"),
            {"contestants": stated, "rules": self.rules.of_examination()},
            [_stage(self.rows, m.name, rate) for m in self.methods for rate in m.rates],
        )
        places = {self.model: base_examination}
        examined = {}
        for contestant in chosen:
            # Two contestants may be one model.
            place = places.setdefault(contestant.model, folder / contestant.name)
            if done is None and place == folder / contestant.name:
                say(f"    {contestant.name}: learning rate {contestant.rate}, step {contestant.step}\n")
                log = f"{_stage(self.rows, contestant.name)}-examination"
                examine(self.journal, self.rules, contestant.model, place, log, 1 / len(chosen))
            examined[contestant.name] = asdict(contestant) | {"examination": str(place)}
        if done is None:
            self.journal.finish()
        return {"trials": [_stated(t) for t in trials], "contestants": examined}

    def choose(self, trials: Sequence[Trial]) -> list[Contestant]:
        """A method's end and best, by validation."""
        last = max(trials, key=lambda t: t.values[t.last_step])
        best = max(trials, key=lambda t: t.values[t.best_step])
        return [
            Contestant(
                name=f"{trial.method}-{choice}",
                method=trial.method,
                model=trial.weights(step, self.model),
                rate=trial.rate,
                step=step,
                validation=trial.values[step],
            )
            for choice, trial, step in zip(
                CHOICES, (last, best), (last.last_step, best.best_step), strict=True
            )
        ]

    def _train(self, method: Method, rate: str) -> Trial:
        rules, metric = self.rules, MAIN_METRIC[self.rules.task]
        name = _stage(self.rows, method.name, rate)
        settings = {
            "program": method.program,
            "flags": method.flags,
            "rate": rate,
            "rules": rules.of_training(),
            "rows": [self.rows.taught(method.labels), self.rows.validation],
            "model": self.model,
            "seed": self.seed,
        } | ({"content": self.rows.content} if self.rows.content else {})
        folder, done = self.journal.stage(name, settings, self.after)
        if done is None:
            accumulated = rules.rows_per_step // (rules.rows_at_once * self.machine.processes)
            command = self.machine.train(
                method.program,
                *("--model_name_or_path", self.model, "--dataset_name", self.rows.taught(method.labels)),
                *("--output_dir", folder, "--task", rules.task),
                *("--max_steps", rules.steps, "--learning_rate", rate),
                *("--per_device_train_batch_size", rules.rows_at_once),
                *("--gradient_accumulation_steps", accumulated),
                *("--max_completion_length", rules.tokens),
                *("--eval_dataset_name", self.rows.validation, "--eval_strategy", "steps"),
                *("--eval_steps", rules.every, "--eval_on_start", "true"),
                *("--per_device_eval_batch_size", rules.answering),
                # With a limit of 1 transformers deletes the last checkpoint in favour of the best one.
                *("--save_steps", rules.every, "--save_total_limit", 2, "--load_best_model_at_end", "true"),
                *("--metric_for_best_model", metric),
                *("--logging_steps", 5, "--report_to", "none", "--seed", self.seed),
                *("--resume_from_checkpoint", "auto"),
                *rules.train_flags,
                *method.flags,
            )
            shown = {f"validation {metric}": validation_pattern(metric)}
            self.journal.run(command, name, rules.steps, watch=shown)
            values = validation_values(folder, metric)
            done = self.journal.finish({"values": values})
            say("    validation " + metric + _curve(values) + "\n")
        values = {int(step): value for step, value in done["values"].items()}
        return Trial(method.name, rate, folder, values)


def examine(journal: Journal, rules: Rules, model: str, place: Path, log: str, share: float = 1.0) -> None:
    """Ask a model the examination's questions and score its replies: ``replies.jsonl`` and
    ``replies.scores.json`` in ``place``."""
    command = [
        *(sys.executable, "-m", "virft.evaluate", rules.suite),
        *("--model_path", model, "--output", place / "replies.jsonl"),
        *("--batch_size", rules.answering, "--max_new_tokens", rules.tokens),
        *rules.suite_flags,
    ]
    journal.run(command, log, 0, share=share)


def validation_values(folder: Path, metric: str) -> dict[str, float]:
    """Step -> value, from the log of a finished training."""
    last, _ = last_checkpoint(folder)
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    key = f"eval_{metric}"
    return {str(entry["step"]): float(entry[key]) for entry in history if key in entry}


def _stage(rows: RowSet, *parts: str) -> str:
    return "-".join(part for part in (rows.name, *parts) if part)


def _stated(trial: Trial) -> dict[str, Any]:
    values = {str(step): value for step, value in trial.values.items()}
    return {"method": trial.method, "rate": trial.rate, "values": values}


def _curve(values: Mapping[str, float]) -> str:
    return "".join(f"  {step}: {value:.3f}" for step, value in values.items())
