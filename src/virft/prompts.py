"""Every prompt string, once.

The texts are word for word those that the public Visual-RFT checkpoints were trained on (spelling included).
The only part that may change is the coordinate phrase of the detection prompt, which must say what is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

THINK_THEN_ANSWER = (
    "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    "The output answer format should be as follows:\n"
)
COORDINATE_PHRASE: Mapping[str, str] = MappingProxyType(
    {
        "norm1000": "(between 0 and 1000, integer)",
        "abs_resized": "(absolute pixel coordinates, integer)",
    }
)
"""Coordinate space -> the words of the detection prompt that ask for it; norm1000's are the reference's."""

NO_OBJECTS = "No Objects"

SUBJECTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "aircraft": ("an aircraft", "model of the aircraft"),
        "flower": ("a plant", "species of the plant"),
        "pet": ("a pet", "species of the pet"),
        "car": ("a car", "model of the car"),
        "dog": ("a dog", "species of the dog"),
    }
)
"""Classification subject -> (what the image contains, what is to be named)."""


def detection(category: str, space: str = "norm1000") -> str:
    """The open-vocabulary detection prompt for one category.

    Args:
        category: the category's name as it should be read by the model.
        space: coordinate space in which boxes are asked for, a key of :data:`COORDINATE_PHRASE`.

    Raises:
        KeyError: a space that no prompt can ask for.
    """
    return (
        f"Detect all objects belonging to the category '{category}' in the image, "
        f"and provide the bounding boxes {COORDINATE_PHRASE[space]} "
        "and confidence (between 0 and 1, with two decimal places).\n"
        f"If no object belonging to the category '{category}' in the image, return '{NO_OBJECTS}'.\n"
        f"{THINK_THEN_ANSWER}"
        "<think> ... </think> <answer>[{'Position': [x1, y1, x2, y2], 'Confidence': number}, ...]</answer>\n"
        "Please strictly follow the format."
    )


def asked_category(problem: str) -> str | None:
    """The category that a detection prompt of ours asks for, in any space; None for other texts."""
    before, after = detection("\0").split("\0")[:2]
    start = problem.partition(before)[2]
    name = start.partition(after.partition(COORDINATE_PHRASE["norm1000"])[0])[0]
    return name if name and problem in {detection(name, space) for space in COORDINATE_PHRASE} else None


def classification(contains: str, to_name: str) -> str:
    """The fine-grained classification prompt, e.g. ``classification(*SUBJECTS["aircraft"])``.

    Args:
        contains: what the image contains, with its article ("an aircraft").
        to_name: what is to be identified ("model of the aircraft").
    """
    return (
        f"This is an image containing {contains}. Please identify the {to_name} based on the image.\n"
        f"{THINK_THEN_ANSWER}"
        "<think> ... </think> <answer>species name</answer>\n"
        "Please strictly follow the format."
    )


def grounding(instruction: str) -> str:
    """The reasoning-grounding (LISA) prompt for one instruction; spelling as in the original."""
    return (
        f"Output the bounding box in the image corresponding to the instruction: {instruction}. "
        "Output the thinking process in <think> </think> and your grouding box. "
        'Following "<think> thinking process </think>\n<answer>(x1,y1),(x2,y2)</answer>)" format.'
    )


def presence(category: str) -> str:
    """Whether a category is in an image at all: for making a candidates file. Our words, not the paper's."""
    return f"Is there any object of the category '{category}' in the image? Answer with yes or no only."


def in_space(problem: str, source: str, target: str) -> str:
    """``problem`` with the coordinate phrase of ``target`` in place of ``source``'s, where it has one."""
    if source == target:
        return problem
    return problem.replace(COORDINATE_PHRASE[source], COORDINATE_PHRASE[target])
