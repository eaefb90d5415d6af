"""The questions of a ReasonSeg split, and mean IoU of the boxes in the replies."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virft import prompts
from virft.data import lisa as data
from virft.errors import UserError
from virft.evaluate import protocol
from virft.evaluate.asking import hash_of, spread
from virft.evaluate.pictures import Panel
from virft.evaluate.protocol import say
from virft.files import check_file
from virft.metrics import grounding as metrics
from virft.predictions import load_meta, load_predictions
from virft.types import Detection, Sample

INSTRUCTIONS = ("first", "all")


@dataclass
class ScoreSettings:
    """Score the boxes of replies: mean IoU on a ReasonSeg split."""

    annotations: str = field(
        default="data/ReasonSeg/val", metadata={"help": "Folder of the split: the truth."}
    )
    predictions: str = field(
        default="predictions.jsonl", metadata={"help": "predictions.jsonl of the inference program."}
    )
    output: str | None = field(default=None, metadata={"help": "Where to write the numbers as JSON."})
    truth: str = field(
        default="all",
        metadata={"help": "all target polygons, LISA's rule; or first_shape of a file, the reference's."},
    )


def questions(
    annotations: str, instructions: str = "first", max_images: int | None = None
) -> tuple[list[Sample], dict[str, Any]]:
    """The samples of a split, and the part of the protocol that says which they are."""
    if instructions not in INSTRUCTIONS:
        raise UserError(
            f"--instructions {instructions!r} is unknown; choose one of {', '.join(INSTRUCTIONS)}"
        )
    read = data.read_split(annotations)
    samples = spread(data.grounding_samples(read, instructions), max_images)
    stated = {
        "suite": "lisa",
        "annotations": annotations,
        "annotations_sha256": truth_hash(annotations),
        "instructions": instructions,
        "max_images": max_images,
        "prompt": prompts.grounding("{instruction}"),
    }
    return samples, stated


def truth_hash(annotations: str) -> str:
    """The hash of a split's annotation files, in the order of their names."""
    return hash_of(sorted(Path(annotations).glob("*.json")))


def check_rule(rule: str) -> None:
    """Refuse an unknown truth. Raises UserError naming the flag."""
    if rule not in data.TRUTH_RULES:
        raise UserError(f"--truth {rule!r} is unknown; choose one of {', '.join(data.TRUTH_RULES)}")


def asked(annotations: str, meta: Mapping[str, Any] | None) -> list[Sample]:
    """The samples that a run asked, by its protocol; without one the first instruction of every image."""
    meta = meta or {}
    return questions(annotations, meta.get("instructions", "first"), meta.get("max_images"))[0]


def score(settings: ScoreSettings) -> dict[str, Any]:
    """Score boxes; print the numbers; write ``settings.output``.

    Returns:
        The fields of :class:`virft.metrics.grounding.BoxScore` with its rows as dictionaries, and
        ``protocol``.

    Raises:
        UserError: a file that is missing or of another kind, predictions of another split.
    """
    check_rule(settings.truth)
    if settings.output:
        check_file("--output", settings.output)
    predictions = load_predictions(settings.predictions)
    if not predictions:
        raise UserError(f"predictions {settings.predictions}: no reply in it")
    meta = load_meta(settings.predictions)
    scored = metrics.score_boxes(asked(settings.annotations, meta), predictions, settings.truth)
    numbers = dataclasses.asdict(scored)
    numbers["protocol"] = {
        "predictions": settings.predictions,
        "annotations": settings.annotations,
        "annotations_sha256": truth_hash(settings.annotations),
        "truth": settings.truth,
        "inference": meta,
    }
    say(box_table(numbers))
    if settings.output:
        protocol.write_json(settings.output, numbers)
        say(f"written to {settings.output}")
    return numbers


def panels(
    annotations: str, predictions: str, truth: str = "all", count: int = 8, best: bool = False
) -> list[Panel]:
    """The questions with the lowest IoU (or the highest) as pictures to look at.

    Args:
        annotations, predictions, truth: as for :func:`score`.
        count: how many.
        best: the highest instead.
    """
    asked_about = asked(annotations, load_meta(predictions))
    replies = load_predictions(predictions)
    rows = metrics.score_boxes(asked_about, replies, truth).rows
    samples = {sample.id: sample for sample in asked_about}
    texts = {prediction.id: prediction.reply for prediction in replies}
    return [
        Panel(
            image=samples[row.id].images[0],
            title=f"{textwrap.shorten(samples[row.id].meta['instruction'], 60)}\nIoU {row.iou:.2f}",
            truth=(row.truth,),
            predicted=(Detection(row.predicted),) if row.predicted is not None else (),
            reply=texts.get(row.id, ""),
        )
        for row in sorted(rows, key=lambda row: row.iou, reverse=best)[:count]
    ]


def box_table(numbers: Mapping[str, Any]) -> str:
    """The box numbers as text, in percent."""
    unread = {code: n for code, n in numbers["reasons"].items() if code != "ok"}
    readable = numbers["miou_readable"]
    lines = [
        f"{numbers['questions']:,} questions ({numbers['without_truth']} without a target left out), "
        f"truth: {numbers['protocol']['truth']}",
        f"mIoU          {100 * numbers['miou']:6.2f}",
        f"IoU >= {metrics.RIGHT_IOU}    {100 * numbers['accuracy']:6.2f}",
        f"mIoU of the readable replies {'-' if readable is None else format(100 * readable, '.2f')}",
        f"without a box {protocol.reasons(unread)}",
    ]
    return "\n".join(lines)
