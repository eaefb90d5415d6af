"""Reasoning grounding on LISA's ReasonSeg: ask, score boxes, and with a SAM masks too."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virft.evaluate import lisa_boxes, lisa_masks
from virft.evaluate.asking import ask as ask_model
from virft.evaluate.asking import leads, scores_path
from virft.inference_settings import InferenceSettings
from virft.parsing import parse_grounding
from virft.types import Prediction


@dataclass
class Settings(InferenceSettings):
    """Ask a model for the box that an instruction means, in the images of a ReasonSeg split."""

    annotations: str = field(
        default="data/ReasonSeg/val", metadata={"help": "Folder of one split: NAME.jpg and NAME.json files."}
    )
    instructions: str = field(
        default="first",
        metadata={"help": "first asks one question an image, as LISA's own validation; all asks every one."},
    )
    max_images: int | None = field(default=None, metadata={"help": "Only so many questions, spread evenly."})
    truth: str = field(
        default="all",
        metadata={"help": "all target polygons, LISA's rule; or first_shape of a file, the reference's."},
    )
    sam_model: str | None = field(
        default=None,
        metadata={
            "help": f"Also make masks and gIoU, cIoU with this SAM, e.g. {lisa_masks.SAM} (the paper's)."
        },
    )


def ask(settings: Settings) -> list[Prediction]:
    """Ask the model; see :func:`virft.evaluate.asking.ask`."""
    lisa_boxes.check_rule(settings.truth)
    paths = f"--annotations {shlex.quote(settings.annotations)} --predictions {shlex.quote(settings.output)}"
    return ask_model(
        settings,
        lambda space: lisa_boxes.questions(settings.annotations, settings.instructions, settings.max_images),
        lambda reply: parse_grounding(reply).reason,
        f"python lisa_evaluation/lisa_evaluation.py {paths}",
    )


def evaluate(settings: Settings) -> dict[str, Any]:
    """Ask, score boxes and, with ``sam_model``, masks; all files stand beside ``settings.output``."""
    if settings.sam_model:  # before the questions, which take longest
        from virft.masks import check_sam

        check_sam(settings.sam_model)
    ask(settings)
    scores = scores_path(settings.output)
    numbers = lisa_boxes.score(
        lisa_boxes.ScoreSettings(
            settings.annotations, settings.output, output=str(scores), truth=settings.truth
        )
    )
    # Under torchrun every rank has the replies, but one process makes the masks.
    if settings.sam_model and leads():
        masks = scores.with_name(Path(settings.output).stem + ".masks.jsonl")
        lisa_masks.make_masks(
            lisa_masks.MaskSettings(
                annotations=settings.annotations,
                predictions=settings.output,
                output=str(masks),
                sam_model=settings.sam_model,
                device=settings.device,
                overwrite=settings.overwrite,
            )
        )
        found = lisa_masks.score_masks(
            lisa_masks.MaskScoreSettings(
                settings.annotations, str(masks), str(scores_path(masks)), truth=settings.truth
            )
        )
        numbers |= {name: found[name] for name in ("giou", "ciou", "without_mask")}
    return numbers
