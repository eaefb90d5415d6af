"""A miniature of the real thing, made here: digit scenes, a tiny Qwen2-VL, and its warm-up.

GRPO sharpens what a model can do by chance; a model with random weights can do nothing by chance. So every
demonstration begins with supervised fine-tuning that is broken off early: the "pretrained model" of a
miniature.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import TINY, Machine
from stages import Journal, Stage, say

from virft.data.digits import NAMES, THOUGHTS, Scenes
from virft.data.digits import write as write_digits

EXAMINATION_SEED = 1000
"""Of the validation and held-out scenes: every run sits the same examination."""
ADAM = ("--adam_beta2", 0.98)
"""Some hundred steps are too few for a memory of a thousand."""


@dataclass(frozen=True)
class WarmUp:
    """Supervised fine-tuning from random weights.

    Attributes:
        batch, lr, rise: rows a step, learning rate, steps to reach it.
        first, every: from which step on, and every how many, the validation scenes are asked.
        most, usual: the last step at the latest, and where it usually ends.
        metric, enough: it ends when this metric of the validation scenes reaches this value. Earlier the
            model has not yet learnt what GRPO could reward; later little is left to gain.
    """

    batch: int = 64
    lr: float = 1e-3
    rise: int = 50
    first: int = 300
    every: int = 25
    most: int = 600
    usual: int = 375
    metric: str = "mean_iou"
    enough: float = 0.75


PLAN = (
    Stage(
        "digits", "Scenes of handwritten digits", "COCO annotations and training rows, from real scans", 12
    ),
    Stage("model", "A tiny Qwen2-VL", "the real architecture and processor, 1.2 million random weights", 5),
    Stage(
        "warmup",
        "Warm-up with supervised fine-tuning",
        "GRPO sharpens what a model can do by chance: this one must first learn to answer at all",
        130,
    ),
)


def make(
    journal: Journal,
    machine: Machine,
    splits: Mapping[str, Scenes],
    warmup: WarmUp,
    tokens: int,
    seed: int,
    validated_on: str = "validation",
) -> Path:
    """The three stages of :data:`PLAN`.

    Args:
        journal: where they stand; its plan begins with :data:`PLAN`.
        machine: what trains.
        splits: "warmup", "validation" and further ones, all of one task.
        warmup: how the model is warmed up.
        tokens: longest reply.
        seed: of the weights and of the order of rows.
        validated_on: the split that ends the warm-up.

    Returns:
        The warmed-up model's folder. The scenes stand in the folder ``digits`` of the journal's.
    """
    digits, done = journal.stage("digits", {name: asdict(scenes) for name, scenes in splits.items()})
    if done is None:
        write_digits(digits, splits, journal.count(sum(s.count for s in splits.values())))
        journal.finish()
    task = splits["warmup"].task
    model, done = journal.stage("model", {"seed": seed})
    if done is None:
        _build(model, task, seed)
        journal.finish()
    folder, done = journal.stage("warmup", asdict(warmup))
    if done is None:
        validation = digits / f"{validated_on}.jsonl"
        command = sft_command(
            machine,
            *(
                model,
                digits / "warmup.jsonl",
                folder,
                warmup.most,
                warmup.batch,
                warmup.lr,
                warmup.rise,
                seed,
            ),
            *("--task", task, "--max_completion_length", tokens),
            *("--eval_strategy", "steps", "--eval_steps", warmup.every, "--eval_delay", warmup.first),
            *("--eval_dataset_name", validation, "--per_device_eval_batch_size", 64),
            *("--stop_metric", warmup.metric, "--stop_value", warmup.enough),
        )
        watch = sft_watch(warmup.metric)
        log = journal.run(command, "warmup", warmup.most, watch=watch, usual=warmup.usual)
        found = re.findall(validation_pattern(warmup.metric), log.read_text(errors="replace"))
        reached = float(found[-1])
        short = "" if reached >= warmup.enough else f", short of {warmup.enough}: it ended at its last step"
        title = warmup.metric.replace("_", " ")
        say(f"    {title} {reached:.3f} on {splits[validated_on].count} validation scenes{short}\n")
        journal.finish({f"validation_{warmup.metric}": reached})
    return folder


def _build(folder: Path, task: str, seed: int) -> None:
    from transformers.utils import logging

    from virft import tiny

    logging.disable_progress_bar()
    tiny.build(folder, seed=seed, words=NAMES, thoughts=[THOUGHTS[task]], **tiny.LEARNER)


def sft_command(
    machine: Machine,
    model: Path,
    rows: Path,
    output: Path,
    steps: int,
    batch: int,
    rate: float,
    rise: int,
    seed: int,
    *more: Any,
) -> list[str]:
    """sft.py on the tiny model, continuing what stands at ``output``."""
    return machine.train(
        "sft.py",
        *("--model_name_or_path", model, "--dataset_name", rows, "--output_dir", output),
        *("--max_steps", steps, "--learning_rate", rate),
        *("--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", rise),
        *("--per_device_train_batch_size", machine.per_process(batch), *ADAM),
        *("--logging_steps", 10, "--save_steps", 50, "--save_total_limit", 1),
        *("--report_to", "none", "--seed", seed, "--resume_from_checkpoint", "auto"),
        *TINY,
        *more,
    )


def sft_watch(metric: str) -> dict[str, str]:
    """What is shown beside the bar of sft.py."""
    return {"loss": r"'loss'?: '?([-+.0-9e]+)", f"validation {metric}": validation_pattern(metric)}


def validation_pattern(metric: str) -> str:
    """A metric of the validation scenes in what the training programs write."""
    return rf"'eval_{metric}'?: '?([-+.0-9e]+)"
