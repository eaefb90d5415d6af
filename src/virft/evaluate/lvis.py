"""Detection on LVIS: COCO's questions and flags, LVIS's images, presets and federated AP."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from virft.data.coco import is_lvis, load_annotations
from virft.errors import UserError
from virft.evaluate import coco
from virft.evaluate.asking import ask as ask_model
from virft.evaluate.asking import scores_path
from virft.metrics import lvis
from virft.parsing import parse_detections
from virft.types import Prediction, Sample

RULES = coco.Rules(lvis.average_precision, lvis.LVIS_NUMBERS, f"AR@{lvis.MAX_BOXES}")


@dataclass
class Settings(coco.Settings):
    """Ask a model for the boxes of categories in the images of LVIS annotations."""

    annotations: str = field(
        default="data/lvis/lvis_v1_val.json", metadata={"help": "LVIS annotations: images and categories."}
    )
    image_folder: str = field(
        default="data/coco",
        metadata={
            "help": "Folder of val2017/ and train2017/: images stand at the last two parts of coco_url."
        },
    )
    categories: list[str] = field(
        default_factory=lambda: ["fewshot6"], metadata={"help": "Names or presets: fewshot6, rare13, all."}
    )


@dataclass
class ScoreSettings(coco.ScoreSettings):
    """Score detections by LVIS's rules: results JSON or the replies of the inference program."""

    annotations: str = field(
        default="data/lvis/lvis_v1_val.json", metadata={"help": "LVIS annotations: the truth."}
    )


def questions(settings: Settings, space: str) -> tuple[list[Sample], dict[str, Any]]:
    """The samples of a run, and the part of its protocol that says which they are."""
    _check(settings.annotations)
    samples, stated = coco.questions(settings, space)
    return samples, {**stated, "suite": "lvis"}


def ask(settings: Settings) -> list[Prediction]:
    """Ask the model; see :func:`virft.evaluate.asking.ask`."""
    paths = f"--annotations {shlex.quote(settings.annotations)} --predictions {shlex.quote(settings.output)}"
    return ask_model(
        settings,
        lambda space: questions(settings, space),
        lambda reply: parse_detections(reply).reason,
        f"python lvis_evaluation/lvis_evaluation.py {paths}",
    )


def score(settings: ScoreSettings) -> dict[str, Any]:
    """Score a file of replies or results as :func:`virft.evaluate.coco.score` does, by LVIS's rules.

    Raises:
        UserError: also for annotations that are not LVIS's.
    """
    _check(settings.annotations)
    return coco.score(settings, RULES)


def evaluate(settings: Settings) -> dict[str, Any]:
    """Ask, then score; the numbers stand beside the replies in ``<output stem>.scores.json``."""
    ask(settings)
    return score(
        ScoreSettings(
            annotations=settings.annotations,
            predictions=settings.output,
            output=str(scores_path(settings.output)),
        )
    )


def _check(annotations: str) -> None:
    content = load_annotations(annotations)
    if not is_lvis(content):
        raise UserError(
            f"annotations {annotations}: their categories have no frequency, so they are not LVIS's; "
            "for COCO use coco_evaluation/"
        )
    lvis.check_lists(content["images"])
