"""Your own held-out rows as an examination: ask their problems, score the replies by their solutions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from virft.data.coordinates import convert_rows
from virft.data.training import data_hash, load_rows, to_prompts
from virft.errors import UserError, named
from virft.evaluate import classification, coco, protocol
from virft.evaluate.asking import ask as ask_model
from virft.evaluate.asking import scores_path, spread
from virft.evaluate.protocol import say
from virft.files import check_file, replacing
from virft.inference_settings import InferenceSettings
from virft.metrics import detection, grounding
from virft.metrics.rows import RowMetric
from virft.parsing import parse_class, parse_detections, parse_grounding
from virft.predictions import load_meta, load_predictions
from virft.types import Prediction, Sample

READERS = {"detection": parse_detections, "classification": parse_class, "grounding": parse_grounding}
ROW = ("problem", "solution", "image_sizes", "category")
"""What the scorer needs of a row; it travels in the prediction's meta."""


@dataclass
class Settings(InferenceSettings):
    """Ask a model the problems of held-out training rows and score its replies by their solutions."""

    dataset: str = field(
        default="data/test.jsonl",
        metadata={"help": "Rows: a .json, .jsonl or .parquet file, a save_to_disk folder or a Hub id."},
    )
    split: str = field(default="train", metadata={"help": "The split of a source that has splits."})
    image_folder: str | None = field(
        default=None, metadata={"help": "Where relative image paths start; default: beside the file."}
    )
    task: str = field(
        default="detection",
        metadata={"help": f"{', '.join(READERS)}: rows of another one (column task) are left out."},
    )
    max_images: int | None = field(default=None, metadata={"help": "Only so many rows, spread evenly."})


@dataclass
class ScoreSettings:
    """Score the replies to rows: AP, accuracy or mean IoU by their solutions."""

    predictions: str = field(
        default="predictions.jsonl", metadata={"help": "predictions.jsonl of a run of this suite."}
    )
    output: str | None = field(default=None, metadata={"help": "Where to write the numbers as JSON."})


def questions(settings: Settings, space: str) -> tuple[list[Sample], dict[str, Any]]:
    """The samples of a run, boxes and words in ``space``, and what its protocol says of them.

    Raises:
        UserError: an unknown task, rows that cannot be used (:func:`virft.data.training.load_rows`), or none.
    """
    from virft.inference_model import load_processor

    if settings.task not in READERS:
        raise UserError(f"--task {settings.task!r} is unknown; choose one of {', '.join(READERS)}")
    size = load_processor(settings.model_path, settings.min_pixels, settings.max_pixels).image_processor.size
    limits = (size["shortest_edge"], size["longest_edge"])
    rows = load_rows(settings.dataset, settings.split, settings.image_folder)
    digest = data_hash(rows)
    rows = to_prompts(convert_rows(rows, space, *limits))
    pictures = Path(settings.output).with_suffix(".images")
    samples = [
        _sample(number, row, pictures)
        for number, row in enumerate(rows)
        if (row.get("task") or settings.task) == settings.task
    ]
    if not samples:
        raise UserError(f"{settings.dataset}: no row has the task {settings.task!r}")
    unread = [int(s.id) for s in samples if not READERS[settings.task](s.meta.get("solution", "")).ok]
    if unread:
        raise UserError(
            f"{settings.dataset}: {named(unread)}: the solution is no answer to --task {settings.task}; "
            "name the task of such rows, or correct them"
        )
    stated = {
        "suite": "rows",
        "dataset": settings.dataset,
        "task": settings.task,
        "data_hash": digest,
        "max_images": settings.max_images,
        "pixel_limits": list(limits),
    }
    return spread(samples, settings.max_images), stated


def _sample(number: int, row: Mapping[str, Any], pictures: Path) -> Sample:
    *opening, asked = row["prompt"]
    return Sample(
        id=str(number),
        images=tuple(_path(image, pictures) for image in row["images"]),
        prompt=asked["content"],
        system=opening[0]["content"] if opening else None,
        meta={name: row[name] for name in ROW if row.get(name) is not None},
    )


def _path(image: Mapping[str, Any], pictures: Path) -> str:
    """Where an image stands; one that is embedded in the rows is put into ``pictures``, once."""
    if image["bytes"] is None:
        return image["path"]
    path = pictures / hashlib.sha256(image["bytes"]).hexdigest()[:32]
    if not path.exists():
        pictures.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(image["bytes"])
    return str(path)


def ask(settings: Settings) -> list[Prediction]:
    """Ask the model; see :func:`virft.evaluate.asking.ask`."""
    reader = READERS.get(settings.task, parse_detections)
    return ask_model(
        settings,
        lambda space: questions(settings, space),
        lambda reply: reader(reply).reason,
        "the scores; the same command scores again without asking",
    )


def score(settings: ScoreSettings) -> dict[str, Any]:
    """Score a file of replies; print the numbers; write ``settings.output``.

    Returns:
        For detection what :func:`virft.metrics.detection.evaluate` gives; for classification the numbers of
        :mod:`virft.metrics.classification`; for grounding ``miou``, ``accuracy`` (IoU >= .5), ``reasons``
        and ``rows`` (id, iou). And ``skipped`` (rows left out for an unreadable image) and ``protocol``.

    Raises:
        UserError: replies that this suite did not ask for.
    """
    if settings.output:
        check_file("--output", settings.output)
    predictions = load_predictions(settings.predictions)
    if not predictions:
        raise UserError(f"predictions {settings.predictions}: no reply in it")
    meta = load_meta(settings.predictions) or {}
    if meta.get("suite") != "rows":
        raise UserError(f"{settings.predictions}: its protocol does not say that rows were asked")
    task = meta["task"]
    if task == "detection":
        results, truth = detections(predictions, meta)
        numbers = detection.evaluate(results, truth)
        shown = coco.table(numbers, coco.Rules())
    elif task == "classification":
        numbers = classification.count(labelled(predictions), (), len(meta.get("skipped_images", ())))
        shown = classification.table(numbers)
    else:
        numbers = _grounding(predictions, meta)
        shown = (
            f"mIoU {100 * numbers['miou']:.2f}  IoU >= {grounding.RIGHT_IOU} {100 * numbers['accuracy']:.2f}"
        )
    numbers["skipped"] = len(meta.get("skipped_images", ()))
    numbers["protocol"] = {"predictions": settings.predictions, "inference": meta}
    say(shown)
    if settings.output:
        protocol.write_json(settings.output, numbers)
        say(f"written to {settings.output}")
    return numbers


def metric(predictions: Sequence[Prediction], meta: Mapping[str, Any]) -> RowMetric:
    """The metric of a run's rows, in the coordinate space and with the pixel limits of its questions."""
    return RowMetric((meta["task"],), predictions[0].space, *meta["pixel_limits"])


def detections(
    predictions: Sequence[Prediction], meta: Mapping[str, Any]
) -> tuple[detection.Results, detection.Truth]:
    """Replies to detection rows as a COCO set; each row is an image."""
    return metric(predictions, meta).detections([p.meta for p in predictions], predictions)


def labelled(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Replies to classification rows with the solution's class as label, as the metrics want them."""
    return [replace(p, meta={**p.meta, "label": _class(p)}) for p in predictions]


def _class(prediction: Prediction) -> str:
    truth = parse_class(prediction.meta["solution"])
    if not truth.ok:
        raise UserError(f"row {prediction.id}: its solution names no class: {prediction.meta['solution']!r}")
    return truth.value


def _grounding(predictions: Sequence[Prediction], meta: Mapping[str, Any]) -> dict[str, Any]:
    found = metric(predictions, meta).overlaps([p.meta for p in predictions], [p.reply for p in predictions])
    overlaps = [overlap for overlap, _ in found]
    return {
        "miou": sum(overlaps) / len(overlaps),
        "accuracy": sum(overlap >= grounding.RIGHT_IOU for overlap in overlaps) / len(overlaps),
        "questions": len(overlaps),
        "reasons": dict(Counter(reason for _, reason in found).most_common()),
        "rows": [{"id": p.id, "iou": overlap} for p, overlap in zip(predictions, overlaps, strict=True)],
    }


def evaluate(settings: Settings) -> dict[str, Any]:
    """Ask, then score; the numbers stand beside the replies in ``<output stem>.scores.json``."""
    ask(settings)
    return score(ScoreSettings(settings.output, str(scores_path(settings.output))))
