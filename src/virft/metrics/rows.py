"""A task's numbers from training rows and replies to them: what evaluation during training logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from virft.boxes import convert, iou, resized
from virft.errors import UserError
from virft.metrics import detection
from virft.parsing import normalize_class, parse_class, parse_detections, parse_grounding
from virft.prompts import asked_category
from virft.types import Prediction

Rows = Sequence[Mapping[str, Any]]
METRICS: Mapping[str, tuple[str, ...]] = {
    "detection": ("map", "ap50", "mean_iou", "unreadable"),
    "classification": ("accuracy", "unreadable"),
    "grounding": ("miou", "unreadable"),
}
"""Task -> its numbers; the first says which checkpoint is best unless another is asked for."""

MAIN_METRIC: Mapping[str, str] = {task: names[0] for task, names in METRICS.items()}
LOWER_IS_BETTER = ("unreadable",)

NOMINAL = (1000, 1000)
"""The size, original and resized, of what boxes refer to in a row that has not exactly one image."""


class RowMetric:
    """Numbers of held-out rows by task; with several tasks each row counts for its own (column ``task``).

    Args:
        tasks: those of the run.
        space: the coordinate space of replies and solutions.
        min_pixels, max_pixels: the processor's area limits.

    Raises:
        UserError: a task that has no metric here.
    """

    def __init__(self, tasks: Sequence[str], space: str, min_pixels: int, max_pixels: int) -> None:
        unknown = [task for task in tasks if task not in MAIN_METRIC]
        if unknown:
            raise UserError(f"no metric for task {unknown[0]!r}; known: {', '.join(MAIN_METRIC)}")
        self.tasks, self.space, self.limits = tuple(tasks), space, (min_pixels, max_pixels)

    @property
    def best(self) -> str:
        """The name, without prefix, of the number that says which checkpoint is best."""
        return self.names[0]

    @property
    def names(self) -> tuple[str, ...]:
        """All numbers, by name without prefix."""
        return tuple(dict.fromkeys(name for task in self.tasks for name in METRICS[task]))

    def __call__(self, rows: Rows, replies: Sequence[str]) -> dict[str, float]:
        """Name -> number in [0, 1]: map, ap50, mean_iou; accuracy; miou; and the share of unreadable replies.

        Args:
            rows: with ``problem``, ``solution``, ``image_sizes``.
            replies: one for each.
        """
        numbers: dict[str, float] = {}
        compute = {
            "detection": self._detection,
            "classification": self._classification,
            "grounding": self._grounding,
        }
        for task in self.tasks:
            own = [
                (row, reply)
                for row, reply in zip(rows, replies, strict=True)
                if len(self.tasks) == 1 or row.get("task") == task
            ]
            if own:
                numbers |= compute[task](*zip(*own, strict=True))
        return numbers

    def detections(
        self, rows: Rows, predictions: Sequence[Prediction]
    ) -> tuple[detection.Results, detection.Truth]:
        """Detection rows as a COCO set: each row is an image of its own, and what it asks for its category.

        That is the column ``category``, else what our own prompt names, else the whole problem.

        Args:
            rows: with ``problem``, ``solution``, ``image_sizes``.
            predictions: one for each, in the same order; ids and meta are not looked at.
        """
        asked = [str(row.get("category") or asked_category(row["problem"]) or row["problem"]) for row in rows]
        category_ids = {name: number for number, name in enumerate(dict.fromkeys(asked), 1)}
        images, annotations, placed = [], [], []
        for number, (row, prediction, name) in enumerate(zip(rows, predictions, asked, strict=True)):
            size, model_size = self._sizes(row)
            images.append({"id": number, "width": size[0], "height": size[1]})
            for truth in parse_detections(row["solution"]).value or ():
                box = convert(truth.box, self.space, "xywh", size, model_size)
                annotations.append({"image_id": number, "category_id": category_ids[name], "bbox": list(box)})
            meta = {"image_id": number, "category_id": category_ids[name]}
            sizes = {"space": self.space, "image_size": size, "model_size": model_size}
            placed.append(replace(prediction, id=str(number), meta=meta, **sizes))
        categories = [{"id": number, "name": name} for name, number in category_ids.items()]
        truth = detection.make_truth({"images": images, "annotations": annotations, "categories": categories})
        return detection.from_replies(placed, truth), truth

    def overlaps(self, rows: Rows, replies: Sequence[str]) -> list[tuple[float, str]]:
        """IoU and reason code of each reply to a grounding row; without a readable box 0."""
        found = []
        for row, reply in zip(rows, replies, strict=True):
            truth, said = parse_grounding(row["solution"]), parse_grounding(reply)
            overlap = 0.0
            if truth.ok and said.ok:
                # IoU differs between a space and pixels only by the rounding of the resized size.
                sizes = self._sizes(row)
                overlap = iou(*(convert(b.value, self.space, "pixels", *sizes) for b in (said, truth)))
            found.append((overlap, said.reason))
        return found

    def _detection(self, rows: Rows, replies: Sequence[str]) -> dict[str, float]:
        predictions = [Prediction(str(number), reply, self.space) for number, reply in enumerate(replies)]
        results, truth = self.detections(rows, predictions)
        found = detection.evaluate(results, truth)
        return {
            "map": found["AP"],
            "ap50": found["AP50"],
            "mean_iou": found["mean_iou"],
            "unreadable": sum(results.reasons.values()) / len(rows),
        }

    def _classification(self, rows: Rows, replies: Sequence[str]) -> dict[str, float]:
        right = unread = 0
        for row, reply in zip(rows, replies, strict=True):
            truth, said = parse_class(row["solution"]), parse_class(reply)
            unread += not said.ok
            right += truth.ok and said.ok and normalize_class(said.value) == normalize_class(truth.value)
        return {"accuracy": right / len(rows), "unreadable": unread / len(rows)}

    def _grounding(self, rows: Rows, replies: Sequence[str]) -> dict[str, float]:
        found = self.overlaps(rows, replies)
        unread = sum(reason != "ok" for _, reason in found)
        return {"miou": sum(o for o, _ in found) / len(rows), "unreadable": unread / len(rows)}

    def _sizes(self, row: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Sizes of the image and of the resized image; boxes of other rows are compared in their own
        space."""
        if len(row["image_sizes"]) != 1:
            return NOMINAL, NOMINAL
        width, height = row["image_sizes"][0]
        return (width, height), resized((width, height), *self.limits)
