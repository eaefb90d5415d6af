"""Ask a model which categories are in each image, for --candidates. Edit the defaults or pass flags."""

from __future__ import annotations

from dataclasses import dataclass, field

from virft.evaluate import candidates
from virft.evaluate.flags import parse
from virft.programs import run_program


@dataclass
class Settings(candidates.Settings):
    """Ask a model which categories are present in each image, and write a --candidates file."""

    model_path: str = "Qwen/Qwen2-VL-2B-Instruct"
    annotations: str = "data/coco/annotations/instances_val2017.json"
    image_folder: str = "data/coco/val2017"
    categories: list[str] = field(default_factory=lambda: ["all"])
    candidates_file: str = "coco_evaluation/candidates.json"
    output: str = "coco_evaluation/presence.jsonl"
    batch_size: int = 32  # replies are one word: many fit


if __name__ == "__main__":
    run_program(lambda: candidates.make(parse(Settings)))
