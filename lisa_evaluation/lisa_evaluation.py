"""Mean IoU of the boxes on a ReasonSeg split. Edit the defaults and run it, or pass them as flags."""

from __future__ import annotations

from dataclasses import dataclass

from virft.evaluate import lisa_boxes
from virft.evaluate.flags import parse
from virft.programs import run_program


@dataclass
class Settings(lisa_boxes.ScoreSettings):
    """Score the boxes of replies: mean IoU on a ReasonSeg split."""

    annotations: str = "data/ReasonSeg/val"
    predictions: str = "lisa_evaluation/predictions.jsonl"
    truth: str = "all"  # or first_shape, the reference's
    output: str | None = None  # a JSON file for the numbers


if __name__ == "__main__":
    run_program(lambda: lisa_boxes.score(parse(Settings)))
