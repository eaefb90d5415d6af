"""Score detections on LVIS. Edit the defaults and run it, or pass them as flags."""

from __future__ import annotations

from dataclasses import dataclass

from virft.evaluate import lvis
from virft.evaluate.flags import parse
from virft.programs import run_program


@dataclass
class Settings(lvis.ScoreSettings):
    """Score detections by LVIS's rules: results JSON or the replies of the inference program."""

    annotations: str = "data/lvis/lvis_v1_val.json"
    predictions: str = "lvis_evaluation/predictions.jsonl"
    output: str | None = None  # a JSON file for the numbers


if __name__ == "__main__":
    run_program(lambda: lvis.score(parse(Settings)))
