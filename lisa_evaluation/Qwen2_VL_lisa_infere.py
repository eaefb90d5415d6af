"""Ask a Qwen2-VL or Qwen2.5-VL for the box that an instruction means, and print the mean IoU.

Edit the defaults and run it, or pass them as flags.
"""

from __future__ import annotations

from dataclasses import dataclass

from virft.evaluate import lisa
from virft.evaluate.flags import parse
from virft.programs import run_program


@dataclass
class Settings(lisa.Settings):
    """Ask a model for the box that an instruction means, in the images of a ReasonSeg split."""

    model_path: str = "Qwen/Qwen2-VL-2B-Instruct"
    annotations: str = "data/ReasonSeg/val"  # or data/ReasonSeg/test
    instructions: str = "first"  # all asks every instruction of an image
    output: str = "lisa_evaluation/predictions.jsonl"
    batch_size: int = 8


if __name__ == "__main__":
    run_program(lambda: lisa.evaluate(parse(Settings)))
