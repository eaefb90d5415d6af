"""What an examination says: the numbers of a table, and statistics to resample, for every suite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from virft.data import coco
from virft.errors import UserError
from virft.evaluate import rows
from virft.evaluate.asking import scores_path
from virft.metrics import bootstrap, classification, detection
from virft.predictions import load_meta, load_predictions

REPLIES = "replies.jsonl"
"""Name of a contestant's replies in its folder."""


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, and where its number stands in a suite's score file."""

    title: str
    keys: tuple[str, ...]

    def read(self, scores: Mapping[str, Any]) -> float | None:
        """The number, or None where the score file has none; a table of counts is summed."""
        value: Any = scores
        for key in self.keys:
            if key not in value:
                return None
            value = value[key]
        return sum(n for code, n in value.items() if code != "ok") if isinstance(value, Mapping) else value


DETECTION = MappingProxyType(
    {
        "map": Column("mAP", ("AP",)),
        "ap50": Column("AP50", ("AP50",)),
        "mean_iou": Column("mean IoU", ("mean_iou",)),
        "map_constant": Column("mAP, one confidence", ("constant_confidence", "AP")),
        "map_likelihood": Column("mAP, by likelihood", ("likelihood_ranked", "AP")),
        "unreadable": Column("unreadable", ("unreadable",)),
    }
)
COLUMNS: Mapping[str, Mapping[str, Column]] = MappingProxyType(
    {
        "coco": DETECTION,
        "lvis": DETECTION,
        "classification": MappingProxyType(
            {
                "accuracy": Column("accuracy", ("accuracy",)),
                "accuracy_paper_rule": Column("paper's rule", ("accuracy_paper_rule",)),
                "unreadable": Column("unreadable", ("reasons",)),
            }
        ),
        "lisa": MappingProxyType(
            {
                "miou": Column("mIoU", ("miou",)),
                "accuracy": Column("IoU >= .5", ("accuracy",)),
                "unreadable": Column("unreadable", ("reasons",)),
            }
        ),
    }
)
"""Suite -> columns by name. The first one is what the suite is about and what intervals are given for."""
ROWS = "rows"
"""The suite of the user's own rows; its score files have the columns of the suite of their task."""
SUITE_OF = MappingProxyType({"detection": "coco", "classification": "classification", "grounding": "lisa"})
"""Task -> the suite that examines it unless another is named."""


def columns(suite: str, task: str) -> Mapping[str, Column]:
    """The columns of a suite's table."""
    return COLUMNS[SUITE_OF[task] if suite == ROWS else suite]


def numbers(suite: str, task: str, place: Path) -> dict[str, float | None]:
    """The table's numbers of one contestant."""
    scores = _scores(place)
    return {name: column.read(scores) for name, column in columns(suite, task).items()}


def statistic(suite: str, place: Path) -> tuple[bootstrap.Statistic, int]:
    """The main number as a function of how often each unit is drawn, and the number of units.

    Units are images (coco), rows or questions. On LVIS it is the mean IoU over questions: its AP leaves out
    categories that an image was not searched for, which a resampled set would have to know.
    """
    replies, meta = load_predictions(place / REPLIES), load_meta(place / REPLIES)
    if meta is None and suite in (ROWS, "classification"):
        raise damaged(place, "the protocol of its replies is missing")
    meta = meta or {}
    if suite == ROWS and meta["task"] == "detection":
        results, truth = rows.detections(replies, meta)
        return bootstrap.average_precision(results, truth), len(truth.images)
    if suite == ROWS and meta["task"] == "classification":
        replies = rows.labelled(replies)
    if "classification" in (suite, meta.get("task")):
        judged = classification.score(replies, meta.get("classes", ()))
        return bootstrap.mean([float(row.right) for row in judged.rows]), len(judged.rows)
    scores = _scores(place)
    if suite in (ROWS, "lisa"):
        return bootstrap.mean([row["iou"] for row in scores["rows"]]), len(scores["rows"])
    said = scores["protocol"]
    annotations = coco.load_annotations(said["annotations"])
    chosen = coco.choose_categories(annotations, said["categories"])
    truth = detection.make_truth(annotations, chosen, (said["inference"] or {}).get("max_images"))
    results = detection.from_replies(replies, truth, said["missing_score"])
    if suite == "lvis":
        ious = sorted(detection.question_ious(results, truth).items())
        return bootstrap.mean([value for _, value in ious]), len(ious)
    return bootstrap.average_precision(results, truth), len(truth.images)


def _scores(place: Path) -> dict[str, Any]:
    file = scores_path(place / REPLIES)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise damaged(place, f"{file.name} is missing or damaged") from None


def damaged(place: Path, what: str) -> UserError:
    """The error about a finished examination whose files have suffered since; it says how to get another."""
    # The base's place is its stage's folder, the others' lie in that of their stage.
    stage = place if (place.parent / "stages").is_dir() else place.parent
    return UserError(f"{place}: {what}; remove the folder {stage} and start again, it is made anew")
