"""The nouns everybody shares: Box, Detection, Sample, Prediction.

A *reply* is the raw text of a model, an *answer* what stands in its ``<answer>`` tags, a *solution* the truth
(the data set's column), a *score* the confidence that a model wrote beside a box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class Box(NamedTuple):
    """Corners x1, y1, x2, y2 in a coordinate space that the holder names (see :mod:`virft.boxes`)."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, slots=True)
class Detection:
    """One box of an answer.

    Attributes:
        box: its corners.
        score: the confidence in [0, 1], or None where the model wrote none.
        span: where it was read from a text, (begin, end) of the characters between the brackets that hold its
            numbers; the same box read elsewhere is an equal detection.
    """

    box: Box
    score: float | None = None
    span: tuple[int, int] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """One question to a model.

    Attributes:
        id: unique within a run and the same in every run; resuming an inference goes by it.
        images: paths (or PIL images) in the order in which they stand before the prompt; may be empty.
        prompt: the user's text, without image placeholders.
        system: an optional system message.
        meta: JSON values that the scorer needs and the model never sees (image_id, category_id ...).
    """

    id: str
    images: tuple[Any, ...]
    prompt: str
    system: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model replied to a sample: the raw reply, never parsed boxes: a better reader can re-score.

    Attributes:
        id: the sample's id.
        reply: the raw text.
        space: the coordinate space in which the model was asked to write boxes.
        image_size: (width, height) in pixels of the sample's first image, None without an image.
        model_size: (width, height) in pixels of that image as it was resized for the model.
        tokens: how many tokens were generated.
        truncated: whether generation ended at the token limit rather than at an end-of-turn token.
        meta: the sample's.
        logprobs: where they were asked for, the natural logarithm of the probability that the model gave each
            generated token after those before it, at temperature 1 whatever it was sampled at.
        token_ends: with them, how many characters of the reply are written once each token is there; a token
            may add none (special ones, or a part of a character).
    """

    id: str
    reply: str
    space: str
    image_size: tuple[int, int] | None = None
    model_size: tuple[int, int] | None = None
    tokens: int = 0
    truncated: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)
    logprobs: tuple[float, ...] | None = None
    token_ends: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The dictionary that stands on a line of ``predictions.jsonl``; logprobs where there are any."""
        optional = ("logprobs", "token_ends")
        return {k: v for k, v in asdict(self).items() if v is not None or k not in optional}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Prediction:
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError: ``id``, ``reply`` or ``space`` is missing.
            ValueError: a field holds another kind of value, or ``logprobs`` and ``token_ends`` do not belong
                together.
        """
        sizes = {k: _size(k, line.get(k)) for k in ("image_size", "model_size")}
        meta = line.get("meta", {})
        kinds = (("id", line["id"], str), ("reply", line["reply"], str), ("space", line["space"], str))
        for name, value, kind in (*kinds, ("meta", meta, Mapping)):
            if not isinstance(value, kind):
                raise ValueError(f"{name} is {value!r}")
        logprobs, ends = line.get("logprobs"), line.get("token_ends")
        if (logprobs is None) != (ends is None) or len(logprobs or ()) != len(ends or ()):
            raise ValueError("logprobs and token_ends must hold one number for each token")
        return cls(
            id=line["id"],
            reply=line["reply"],
            space=line["space"],
            tokens=line.get("tokens", 0),
            truncated=line.get("truncated", False),
            meta=meta,
            logprobs=None if logprobs is None else tuple(logprobs),
            token_ends=None if ends is None else tuple(ends),
            **sizes,
        )


def _size(name: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(isinstance(side, int) and side > 0 for side in value)
    ):
        raise ValueError(f"{name} is {value!r}, not a width and a height")
    return tuple(value)
