"""Ask a Qwen2-VL or Qwen2.5-VL for boxes on LVIS. Edit the defaults and run it, or pass them as flags."""

from __future__ import annotations

from dataclasses import dataclass, field

from virft.evaluate import lvis
from virft.evaluate.flags import parse
from virft.programs import run_program


@dataclass
class Settings(lvis.Settings):
    """Ask a model for the boxes of categories in the images of LVIS annotations."""

    model_path: str = "Qwen/Qwen2-VL-2B-Instruct"
    annotations: str = "data/lvis/lvis_v1_val.json"
    image_folder: str = "data/coco"  # holds val2017/ and train2017/
    categories: list[str] = field(default_factory=lambda: ["fewshot6"])  # or rare13, all, names
    candidates: str = "all"  # ground_truth, or a JSON file {image id: [names]}
    output: str = "lvis_evaluation/predictions.jsonl"
    batch_size: int = 8


if __name__ == "__main__":
    run_program(lambda: lvis.ask(parse(Settings)))
