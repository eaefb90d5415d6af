"""Rows whose labels say how sure to be: the strongest rival of a reward for confidence.

The base model answers the training rows; a row's taught reply then claims a high confidence where the model's
own box was right and a low one where it was wrong. That gives supervised fine-tuning what the confidence
reward gives GRPO, at the price of one pass over the rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from contest import RowSet, Rules, examine
from scores import REPLIES
from stages import Journal, Stage

from virft.data import coco, solutions
from virft.files import replacing
from virft.metrics import detection
from virft.parsing import parse_detections
from virft.predictions import load_predictions
from virft.types import Detection

SURE, UNSURE = 0.9, 0.1
RIGHT_IOU = 0.5
"""IoU from which a box counts as right, as in the confidence reward."""


def stage(name: str, cost: float) -> Stage:
    """The stage of :func:`make`."""
    why = "the base answers the training rows; a label claims .9 where it was right and .1 where not"
    return Stage(stage_name(name), f"Confidences for the labels of {name}", why, cost)


def stage_name(rows: str) -> str:
    """The name of the stage of a row set."""
    return f"{rows}-self-labels"


def make(journal: Journal, rules: Rules, model: str, rows: RowSet, after: Sequence[str]) -> RowSet:
    """The row set with a file of self-labelled rows; COCO annotations stand beside the rows.

    Args:
        journal: the stage's.
        rules: how the model is asked.
        model: that answers the rows.
        rows: of a digit split.
        after: the stages that made model and rows.
    """
    given = Path(rows.rows)
    folder, done = journal.stage(stage_name(rows.name), {"model": model, "rows": rows.rows}, after)
    labelled = folder / given.name
    if done is None:
        annotations = given.with_suffix(".json")
        flags = ("--annotations", str(annotations), "--image_folder", str(given.parent))
        asked = replace(rules, suite_flags=(*flags, "--candidates", "ground_truth", "--dtype", "float32"))
        examine(journal, asked, model, folder, f"{rows.name}-self-labels")
        truth = detection.make_truth(coco.load_annotations(annotations))
        ious = detection.question_ious(
            detection.from_replies(load_predictions(folder / REPLIES), truth), truth
        )
        # The rows of a digit split stand in the order of its images, one question each.
        overlaps = [overlap for _, overlap in sorted(ious.items())]
        lines = given.read_text(encoding="utf-8").splitlines()
        with replacing(labelled) as temporary:
            texts = (
                _labelled(line, overlap, given.parent) for line, overlap in zip(lines, overlaps, strict=True)
            )
            temporary.write_text("".join(texts), encoding="utf-8")
        journal.finish({"right": sum(overlap > RIGHT_IOU for overlap in overlaps), "rows": len(lines)})
    return replace(rows, self_labelled=str(labelled))


def _labelled(line: str, overlap: float, folder: Path) -> str:
    row = json.loads(line)
    confidence = SURE if overlap > RIGHT_IOU else UNSURE
    truths = parse_detections(row["solution"]).value
    answer = solutions.detection_answer([Detection(truth.box, confidence) for truth in truths])
    thinking = row["completion"].split("<answer>")[0]
    row["completion"] = thinking + solutions.tagged(answer)
    row["image"] = str(folder / row["image"])
    return json.dumps(row) + "\n"
