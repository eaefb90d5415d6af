"""Small data sets for the tests of the evaluation suites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = (60, 40)
SQUARE = [[10, 10], [29, 10], [29, 29], [10, 29]]
"""A polygon that covers 20 x 20 pixels, border included."""


def image(path: Path, color: str = "grey", size: tuple[int, int] = SIZE) -> Path:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def shape(points: list[list[float]], label: str = "target", kind: str = "polygon") -> dict[str, Any]:
    """A shape as LISA's files hold it."""
    return {"label": label, "points": points, "shape_type": kind}


def annotate(folder: Path, name: str, shapes: list[dict], texts: list[str] | None = None) -> Path:
    """NAME.jpg and NAME.json of a ReasonSeg split."""
    image(folder / f"{name}.jpg")
    record = {"text": texts or ["the square"], "is_sentence": False, "shapes": shapes}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def lisa_split(folder: Path) -> Path:
    """Three images: one target, two targets, one target with an ignored region."""
    annotate(folder, "a", [shape(SQUARE)], ["the square", "the grey thing"])
    annotate(folder, "b c", [shape(SQUARE), shape([[40, 10], [49, 10], [49, 19], [40, 19]])])
    annotate(folder, "d", [shape(SQUARE), shape([[10, 10], [29, 10], [29, 19], [10, 19]], "ignore")])
    return folder


def class_folder(folder: Path) -> Path:
    """Two classes with two images each."""
    for color in ("red", "dark_blue"):
        for number in range(2):
            image(folder / color / f"{number}.png", color.replace("_", ""))
    return folder


def lvis_set(folder: Path) -> tuple[Path, Path]:
    """(annotations, image folder) of two images and two categories."""
    names = ["val2017/000000000001.jpg", "val2017/000000000002.jpg"]
    for name in names:
        image(folder / name)
    content = {
        "images": [
            {
                "id": number,
                "width": SIZE[0],
                "height": SIZE[1],
                "coco_url": f"http://images.cocodataset.org/{name}",
                "neg_category_ids": [9],
                "not_exhaustive_category_ids": [],
            }
            for number, name in enumerate(names, 1)
        ],
        "categories": [
            {"id": 7, "name": "egg_roll", "frequency": "r", "synonyms": ["egg_roll", "spring_roll"]},
            {"id": 9, "name": "cup", "frequency": "f", "synonyms": ["cup"]},
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 7, "bbox": [10, 10, 20, 20], "area": 400} for n in (1, 2)
        ],
    }
    path = folder / "lvis.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path, folder


def tiny_sam(folder: Path) -> Path:
    """A saved SAM with random weights and its processor: the real classes, small sizes."""
    import torch
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(0)
    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "output_channels": 16,
            "mlp_dim": 32,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
        },
        prompt_encoder_config={
            "hidden_size": 16,
            "image_size": 64,
            "patch_size": 8,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    SamModel(config).save_pretrained(folder)
    processor = SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    SamProcessor(processor).save_pretrained(folder)
    return folder


def write_predictions(path: Path, lines: list[dict[str, Any]]) -> Path:
    """A predictions.jsonl, as the inference program writes it."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
