"""Ask a Qwen2-VL or Qwen2.5-VL which class an image shows. Edit the defaults and run it, or pass flags."""

from __future__ import annotations

from dataclasses import dataclass

from virft.evaluate import classification
from virft.evaluate.flags import parse
from virft.programs import run_program


@dataclass
class Settings(classification.Settings):
    """Ask a model which class its images show."""

    model_path: str = "Qwen/Qwen2-VL-2B-Instruct"
    dataset: str = (
        "flowers102"  # pets37, cars196, aircraft100, a folder of classes, or a .csv/.json/.jsonl list
    )
    root: str = "data"
    split: str = "test"
    split_file: str | None = None  # split_zhou_OxfordFlowers.json: the split of the paper's Flowers102
    image_folder: str | None = None
    classes: str | None = None  # e.g. classification/cars196.txt
    output: str = "classification/predictions.jsonl"
    batch_size: int = 8


if __name__ == "__main__":
    run_program(lambda: classification.ask(parse(Settings)))
