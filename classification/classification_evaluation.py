"""Score class answers. Edit the defaults and run it, or pass them as flags."""

from __future__ import annotations

from dataclasses import dataclass

from virft.evaluate import classification
from virft.evaluate.flags import parse
from virft.programs import run_program


@dataclass
class Settings(classification.ScoreSettings):
    """Score class answers: strict accuracy, the paper's lenient rule, classes, frequent mistakes."""

    predictions: str = "classification/predictions.jsonl"
    output: str | None = None  # a JSON file for the numbers


if __name__ == "__main__":
    run_program(lambda: classification.score(parse(Settings)))
