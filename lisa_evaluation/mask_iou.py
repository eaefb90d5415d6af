"""gIoU and cIoU of masks by LISA's own rule. Edit the defaults and run it, or pass them as flags."""

from __future__ import annotations

from dataclasses import dataclass

from virft.evaluate import lisa_masks
from virft.evaluate.flags import parse
from virft.programs import run_program


@dataclass
class Settings(lisa_masks.MaskScoreSettings):
    """Score masks: gIoU and cIoU by LISA's own rule."""

    annotations: str = "data/ReasonSeg/val"
    masks: str = "lisa_evaluation/masks.jsonl"
    truth: str = "all"  # or first_shape, the reference's
    output: str | None = None  # a JSON file for the numbers


if __name__ == "__main__":
    run_program(lambda: lisa_masks.score_masks(parse(Settings)))
