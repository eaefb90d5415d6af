"""Every number of the quick start and the plan of its stages. README.md says where the numbers come from."""

from __future__ import annotations

from dataclasses import dataclass, field

import miniature
from miniature import WarmUp
from stages import Stage

REWARD_CURVES = {
    "IoU reward (boxes)": "rewards/accuracy_iou/mean",
    "confidence reward": "rewards/accuracy_confidence/mean",
    "format reward": "rewards/format/mean",
}
"""Title of a panel -> key in the trainer's log."""


@dataclass(frozen=True)
class Recipe:
    """Sizes, steps and rates.

    Attributes:
        warmup_scenes, rows, validation, heldout: scenes of each split; ``rows`` are GRPO's and its rival's.
        warmup: how the model is warmed up.
        sft_steps, sft_batch, sft_lr: the rival, supervised fine-tuning on GRPO's rows.
        grpo_steps, prompts, group, grpo_lr: GRPO's steps, prompts a step, completions a prompt, first rate.
        tokens: the longest completion.
        answering: questions a batch when the model is examined.
    """

    warmup_scenes: int = 4000
    rows: int = 160
    validation: int = 128
    heldout: int = 600
    warmup: WarmUp = field(default_factory=WarmUp)
    sft_steps: int = 150
    sft_batch: int = 64
    sft_lr: float = 1e-5
    grpo_steps: int = 120
    prompts: int = 16
    group: int = 8
    grpo_lr: float = 3e-5
    tokens: int = 48
    answering: int = 64


SHORT = Recipe(
    warmup_scenes=64,
    rows=16,
    validation=8,
    heldout=20,
    warmup=WarmUp(batch=16, rise=2, first=4, every=4, most=8),
    sft_steps=2,
    sft_batch=8,
    grpo_steps=3,
    prompts=4,
    group=4,
)
"""Touches every stage; the numbers that come out mean nothing."""

PLAN = (
    *miniature.PLAN,
    Stage(
        "base", "Examination of the warm-up", "the number to beat, on scans that no training ever sees", 10
    ),
    Stage("sft", "The rival: SFT goes on", "the same rows that GRPO gets, with exact boxes to imitate", 55),
    Stage(
        "grpo", "GRPO", "no reply to imitate: sample 8 replies a scene, reward each, prefer the better", 85
    ),
    Stage("examination", "Examination of both", "the same scenes, program and scorer for everybody", 20),
    Stage("report", "Table and pictures", "what was gained, and whether it is more than chance", 3),
)
