"""Score detections on COCO. Edit the defaults and run it, or pass them as flags."""

from __future__ import annotations

from dataclasses import dataclass

from virft.evaluate import coco
from virft.evaluate.flags import parse
from virft.programs import run_program


@dataclass
class Settings(coco.ScoreSettings):
    """Score detections: COCO results JSON or the replies of the inference program."""

    annotations: str = "data/coco/annotations/instances_val2017.json"
    predictions: str = "coco_evaluation/predictions.jsonl"
    output: str | None = None  # a JSON file for the numbers


if __name__ == "__main__":
    run_program(lambda: coco.score(parse(Settings)))
