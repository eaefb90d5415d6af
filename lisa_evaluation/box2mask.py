"""Turn the boxes of replies into masks with SAM. Edit the defaults and run it, or pass them as flags."""

from __future__ import annotations

from dataclasses import dataclass

from virft.evaluate import lisa_masks
from virft.evaluate.flags import parse
from virft.programs import run_program


@dataclass
class Settings(lisa_masks.MaskSettings):
    """Turn the boxes of replies into masks with SAM."""

    annotations: str = "data/ReasonSeg/val"
    predictions: str = "lisa_evaluation/predictions.jsonl"
    sam_model: str = lisa_masks.SAM  # or another SAM of transformers
    output: str = "lisa_evaluation/masks.jsonl"


if __name__ == "__main__":
    run_program(lambda: lisa_masks.make_masks(parse(Settings)))
