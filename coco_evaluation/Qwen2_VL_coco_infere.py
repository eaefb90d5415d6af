"""Ask a Qwen2-VL or Qwen2.5-VL for boxes on COCO. Edit the defaults and run it, or pass them as flags."""

from __future__ import annotations

from dataclasses import dataclass, field

from virft.evaluate import coco
from virft.evaluate.flags import parse
from virft.programs import run_program


@dataclass
class Settings(coco.Settings):
    """Ask a model for the boxes of categories in the images of COCO-format annotations."""

    model_path: str = "Qwen/Qwen2-VL-2B-Instruct"
    annotations: str = "data/coco/annotations/instances_val2017.json"
    image_folder: str = "data/coco/val2017"
    categories: list[str] = field(default_factory=lambda: ["all"])  # or names, fewshot8, novel15, base65
    candidates: str = "all"  # ground_truth, or a JSON file {image id: [names]}
    output: str = "coco_evaluation/predictions.jsonl"
    batch_size: int = 8


if __name__ == "__main__":
    run_program(lambda: coco.ask(parse(Settings)))
