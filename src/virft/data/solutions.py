"""Answers as the prompts ask for them, and solutions as training rows store them: in ``<answer>`` tags.

They are read back by :mod:`virft.parsing`, the same reader that reads a model's replies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from virft.prompts import NO_OBJECTS
from virft.types import Box, Detection


def detection_answer(detections: Sequence[Detection]) -> str:
    """Detections as the wire format's list, corners rounded to integers; a missing score is written as 1."""
    objects = []
    for detection in detections:
        score = 1 if detection.score in (None, 1) else f"{detection.score:.2f}"
        corners = [round(value) for value in detection.box]
        objects.append(f"{{'Position': {corners}, 'Confidence': {score}}}")
    return f"[{', '.join(objects)}]"


def grounding_answer(box: Box) -> str:
    """A box as the wire format's two corners, rounded to integers."""
    x1, y1, x2, y2 = (round(v) for v in box)
    return f"({x1},{y1}),({x2},{y2})"


def tagged(answer: str) -> str:
    """``answer`` between answer tags."""
    return f"<answer>{answer}</answer>"


def detection(boxes: Iterable[Sequence[float]]) -> str:
    """The solution of a detection row; "No Objects" without boxes.

    Args:
        boxes: x1, y1, x2, y2 in the row's coordinate space; rounded to whole numbers. A box equal to an
            earlier one after rounding is left out: the reward drops repeated boxes, so a solution that
            repeats one could never be matched wholly.

    Raises:
        ValueError: a box is empty after rounding.
    """
    whole = dict.fromkeys(map(_whole, boxes))
    return tagged(detection_answer([Detection(box) for box in whole]) if whole else NO_OBJECTS)


def classification(name: str) -> str:
    """The solution of a classification row."""
    return tagged(name)


def grounding(box: Sequence[float]) -> str:
    """The solution of a grounding row; x1, y1, x2, y2 in the row's space, rounded to whole numbers.

    Raises:
        ValueError: the box is empty after rounding.
    """
    return tagged(grounding_answer(_whole(box)))


def _whole(box: Sequence[float]) -> Box:
    whole = Box(*(float(round(value)) for value in box))
    if whole.x1 >= whole.x2 or whole.y1 >= whole.y2:
        raise ValueError(f"its box {[round(value, 2) for value in box]} is empty in whole numbers")
    return whole
