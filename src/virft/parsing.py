"""The only reader of model replies. Rewards, metrics and data checks read solutions and replies with it.

Every function takes any text, never raises, takes time linear in its length, and gives a value or a reason
code of :data:`REASONS`. The rules:

Where the answer stands is found by the rules of :mod:`virft.answer_tags`; lists, objects and numbers are read
by those of :mod:`virft.notation`.

**A box** is an object with one of :data:`BOX_KEYS` (case does not matter; when several are written, the
last counts) that holds exactly four numbers, however they are nested, none beyond :data:`COORDINATE_LIMIT`.
It is kept as written: inverted, negative or outside of the image is for rewards and metrics to judge. Lists
of bare numbers are no boxes. **A confidence** (:data:`SCORE_KEYS`) may be missing; one that is written must
be a number in [0, 1], else that box is unreadable.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from virft.answer_tags import BARE, COMPLETE, SPECIAL_TOKEN, UNCLOSED, answer_span, answer_text
from virft.notation import List, Notation, Object, number_of, numbers_of, read_notation, straight_quotes
from virft.prompts import NO_OBJECTS
from virft.types import Box, Detection

BOX_KEYS = frozenset({"position", "bbox_2d", "bbox", "box"})
SCORE_KEYS = frozenset({"confidence", "score"})
POLYGON_KEYS = frozenset({"polygon", "polygons", "segmentation"})
COORDINATE_LIMIT = 1e6
"""Largest magnitude of a coordinate: beyond any image, and small enough that areas stay exact."""
CLASS_LIMIT = 256
"""Longest class answer in characters; a sentence is not a class."""

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "ok": "the answer was read",
        "empty_reply": "the reply holds nothing but white space",
        "no_answer": "no <answer> tag, and the reply is not the bare answer either",
        "answer_in_thinking": "the only <answer> stands inside the thinking",
        "unclosed_thinking": "the thinking never ends and no <answer> was opened",
        "unclosed_answer": "the <answer> was never closed and holds nothing complete",
        "empty_answer": "the <answer> is empty",
        "no_box": "the answer holds no box",
        "no_position": "an object has none of the keys that hold a box",
        "bad_position": "a box is not exactly four numbers",
        "bad_coordinate": "a coordinate is beyond any image",
        "bad_confidence": "a confidence is not a number in [0, 1]",
        "malformed_object": "an object is closed by the wrong bracket",
        "truncated": "the list ends before it is closed",
        "too_deep": "brackets are nested deeper than any answer needs",
        "contradiction": "the answer says 'No Objects' and lists boxes",
        "several_boxes": "more than one box where one was asked for",
        "no_polygon": "an object has none of the keys that hold a polygon",
        "bad_polygon": "a polygon is not three points or more",
        "no_class": "the answer has no letter or digit",
        "no_yes_or_no": "the answer begins neither with yes nor with no",
        "long_class": f"the answer has more than {CLASS_LIMIT} characters",
    }
)
"""Reason code -> sentence. ``Parsed.reason`` and ``Parsed.notes`` hold these codes."""

T = TypeVar("T")
Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Parsed(Generic[T]):
    """What was read: ``value`` (None when unreadable), ``reason`` ("ok" or why not), ``notes``.

    ``notes`` are the codes, each once and in order of appearance, of what was dropped beside a readable
    value.
    """

    value: T | None
    reason: str = "ok"
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.reason == "ok"


def parse_answer(reply: str) -> Parsed[str]:
    """The text of the last complete ``<answer>`` after the thinking, stripped; tags are required here."""
    text, state = answer_text(reply)
    if state != COMPLETE:
        return Parsed(None, {UNCLOSED: "unclosed_answer", BARE: "no_answer"}.get(state, state))
    text = text.strip()
    return Parsed(text) if text else Parsed(None, "empty_answer")


def _whole_text(reply: str) -> Parsed[str]:
    """The text of a complete answer, or without tags all that follows the thinking; special tokens taken out,
    stripped."""
    text, state = answer_text(reply)
    if state not in (COMPLETE, BARE):
        return Parsed(None, "unclosed_answer" if state == UNCLOSED else state)
    text = SPECIAL_TOKEN.sub(" ", text).strip()
    return Parsed(text) if text else Parsed(None, "empty_answer")


# --------------------------------------------------------------------------------------------- boxes

_FENCE = re.compile(r"```\w{0,16}")
_LIST_FIRST = re.compile(rf"(?:{_FENCE.pattern})?\s*[\[{{]")


def _last(fields: Object, keys: frozenset[str]) -> tuple[bool, str | List | Object | None]:
    """(whether one of the keys is written, the value written last)."""
    value, written = None, False
    for key, candidate in fields.items():
        if key in keys:
            value, written = candidate, True
    return written, value


def _box(numbers: list[float] | None) -> Box | str:
    if numbers is None or len(numbers) != 4:
        return "bad_position"
    if not all(abs(number) <= COORDINATE_LIMIT for number in numbers):
        return "bad_coordinate"
    return Box(*numbers)


def _detection(fields: Object) -> Detection | str:
    """The detection that an object stands for, or a reason code."""
    if not fields.sound:
        return "malformed_object"
    written, position = _last(fields, BOX_KEYS)
    if not written:
        return "no_position"
    box = _box(numbers_of(position))
    if isinstance(box, str):
        return box
    written, confidence = _last(fields, SCORE_KEYS)
    if not written:
        return Detection(box, None, position.span)
    score = number_of(confidence) if isinstance(confidence, str) else None
    if score is None or not 0 <= score <= 1:
        return "bad_confidence"
    return Detection(box, score, position.span)


def _says_none(text: str) -> bool:
    """Whether a text is "No Objects" in any case, with quotes, brackets or a full stop around it."""
    plain = straight_quotes(_FENCE.sub(" ", text)).strip(" \t\r\n\"'`[](){}.!")
    return " ".join(plain.split()).casefold() == NO_OBJECTS.casefold()


def _is_empty_list(found: Notation) -> bool:
    nodes = found.nodes()
    return (
        bool(nodes)
        and all(isinstance(node, List) and node.sound and not node for node in nodes)
        and all(_FENCE.fullmatch(word) for word in found.words())
        and found.cut is None
    )


def parse_detections(reply: str) -> Parsed[tuple[Detection, ...]]:
    """The boxes of a detection reply, in the order written, repeated ones included.

    The value is the empty tuple for a right abstention: a complete answer that is "No Objects" or ``[]``.
    Boxes that cannot be read are dropped and noted; when none can, the reason is that of the first. An
    answer that says "No Objects" beside its boxes is a contradiction, not an answer. Without tags the reply
    must begin, after its thinking, special tokens and a code fence, with the list or object itself, or be
    "No Objects".
    """
    return _parse_objects(reply, _detection, Detection)


def parse_polygons(reply: str) -> Parsed[tuple[Polygon, ...]]:
    """The polygons of a reply's objects (:data:`POLYGON_KEYS`), all in one; otherwise as a detection reply.

    A polygon is ``[x1, y1, x2, y2, ...]`` or ``[[x1, y1], [x2, y2], ...]`` with three points or more; a list
    of polygons is read as well, as COCO's ``segmentation`` has them.
    """
    parsed = _parse_objects(reply, _outline, tuple)
    if not parsed.ok:
        return parsed
    return Parsed(tuple(polygon for outline in parsed.value for polygon in outline), notes=parsed.notes)


def _parse_objects(reply: str, read: Callable[[Object], T | str], kind: type[T]) -> Parsed[tuple[T, ...]]:
    """What ``read`` makes of the objects of an answer: things of type ``kind``, or reason codes."""
    begin, end, state = answer_span(reply)
    if state not in (COMPLETE, UNCLOSED, BARE):
        return Parsed(None, state)
    text = reply[begin:end]
    if state == BARE:
        text = SPECIAL_TOKEN.sub(_blank, text)
        begin += len(text) - len(text.lstrip())
        text = text.strip()
    if state == COMPLETE and not text.strip():
        return Parsed(None, "empty_answer")
    if state != UNCLOSED and _says_none(text):
        return Parsed(())
    if state == BARE and not _LIST_FIRST.match(text):
        return Parsed(None, "no_answer")
    found = read_notation(text, begin)
    if state != UNCLOSED and _is_empty_list(found):
        return Parsed(())
    results = [read(node) for node in found.nodes() if isinstance(node, Object)]
    things = tuple(result for result in results if isinstance(result, kind))
    codes = [result for result in results if isinstance(result, str)] + ([found.cut] if found.cut else [])
    if not things:
        missing = "unclosed_answer" if state == UNCLOSED else "no_box"
        return Parsed(None, codes[0] if codes else missing)
    said = " ".join(" ".join(found.words() + found.in_lists).split())
    if NO_OBJECTS.casefold() in said.casefold():
        return Parsed(None, "contradiction")
    return Parsed(things, notes=tuple(dict.fromkeys(codes)))


def _blank(token: re.Match[str]) -> str:
    """As much white space as a special token is long, so that what follows keeps its place."""
    return " " * len(token[0])


def _outline(fields: Object) -> tuple[Polygon, ...] | str:
    if not fields.sound:
        return "malformed_object"
    written, value = _last(fields, POLYGON_KEYS)
    if not written:
        return "no_polygon"
    return polygons_of(value) or "bad_polygon"


def polygons_of(value: Any) -> tuple[Polygon, ...] | None:
    """The polygons of nested lists of numbers (or of their spellings), in any form that a column may have.

    Returns:
        None where it is something else, a polygon has fewer than three points, or a coordinate is beyond
        :data:`COORDINATE_LIMIT`.
    """
    if not isinstance(value, list | tuple) or not value or not getattr(value, "sound", True):
        return None
    nested = [item for item in value if isinstance(item, list | tuple)]
    if not nested or all(len(item) == 2 and not _has_lists(item) for item in nested):
        flat = [number for item in value for number in (item if isinstance(item, list | tuple) else [item])]
        numbers = [number_of(item) if isinstance(item, str) else _plain(item) for item in flat]
        usable = all(number is not None and abs(number) <= COORDINATE_LIMIT for number in numbers)
        even = len(numbers) % 2 == 0 and len(nested) in (0, len(value))
        if not usable or not even or len(numbers) < 6:
            return None
        return (tuple(zip(numbers[::2], numbers[1::2], strict=True)),)
    if len(nested) != len(value):
        return None
    parts = [polygons_of(item) for item in nested]
    return None if None in parts else tuple(polygon for part in parts for polygon in part)


def _has_lists(value: Sequence[Any]) -> bool:
    return any(isinstance(item, list | tuple) for item in value)


def _plain(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= COORDINATE_LIMIT:
        return None
    return float(value)


def parse_grounding(reply: str) -> Parsed[Box]:
    """The one box of a grounding reply: ``(x1,y1),(x2,y2)``, or an object as in a detection reply.

    Numbers may have signs and decimals; white space and a comma may stand between the two corners, words
    around them. Corners are kept as written. Two different boxes are no answer: a reply may not hedge.
    Without tags the corners may stand anywhere after the thinking, as in Qwen2-VL's native
    ``<|box_start|>(..),(..)<|box_end|>``.
    """
    text, state = answer_text(reply)
    if state not in (COMPLETE, UNCLOSED, BARE):
        return Parsed(None, state)
    if state == COMPLETE and not text.strip():
        return Parsed(None, "empty_answer")
    found = read_notation(text)
    results = _grounded(found.items) + ([found.cut] if found.cut else [])
    boxes = [result for result in results if isinstance(result, Box)]
    codes = [result for result in results if isinstance(result, str)]
    if len(set(boxes)) > 1:
        return Parsed(None, "several_boxes")
    if not boxes:
        missing = {UNCLOSED: "unclosed_answer", BARE: "no_answer"}.get(state, "no_box")
        return Parsed(None, codes[0] if codes else missing)
    return Parsed(boxes[0], notes=tuple(dict.fromkeys(codes)))


def _grounded(items: Sequence[str | List | Object]) -> list[Box | str]:
    """What objects and pairs of neighbouring corners stand for, in order: boxes, or reason codes."""
    results: list[Box | str] = []
    first: list[float] | None = None
    for item in items:
        if isinstance(item, Object):
            detection = _detection(item)
            results.append(detection.box if isinstance(detection, Detection) else detection)
        corner = _corner(item)
        if first is None:
            first = corner
        else:
            results.append("bad_position" if corner is None else _box(first + corner))
            first = None
    return results if first is None else [*results, "bad_position"]


def boxes_of(reply: str) -> tuple[Box, ...]:
    """The boxes of a reply of either kind: those of a detection reply, else the one of a grounding reply."""
    detections = parse_detections(reply)
    if detections.ok:
        return tuple(detection.box for detection in detections.value)
    grounded = parse_grounding(reply)
    return (grounded.value,) if grounded.ok else ()


def _corner(item: str | List | Object) -> list[float] | None:
    """Two numbers in parentheses."""
    if not isinstance(item, List) or item.opener != "(" or len(item) != 2:
        return None
    return numbers_of(item)


# --------------------------------------------------------------------------------------------- classes


def normalize_class(text: str) -> str:
    """A class name without what does not distinguish: case, spaces, underscores, hyphens, punctuation.

    Compatibility forms (full-width letters, ligatures) become plain ones. Letters, marks and digits stay.
    """
    # Canonical ordering of a long run of combining marks takes quadratic time in CPython, so only the
    # beginning of an overlong text, which is no class name anyway, is composed.
    head, tail = text[:CLASS_LIMIT], text[CLASS_LIMIT:]
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", head).casefold()) + tail.casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LNM")


def parse_class(reply: str) -> Parsed[str]:
    """The class that a reply names, as written and stripped; compare with :func:`normalize_class`.

    The answer must be complete. Without tags it is all that follows the thinking.
    """
    read = _whole_text(reply)
    if not read.ok:
        return read
    text = read.value
    if len(text) > CLASS_LIMIT:
        return Parsed(None, "long_class")
    return Parsed(text) if normalize_class(text) else Parsed(None, "no_class")


# --------------------------------------------------------------------------------------------- presence


def parse_presence(reply: str) -> Parsed[bool]:
    """Whether a reply says yes or no: its answer's first word, in any case. Without tags the whole reply."""
    read = _whole_text(reply)
    if not read.ok:
        return Parsed(None, read.reason)
    first = normalize_class(read.value.split(maxsplit=1)[0])
    return Parsed(first == "yes") if first in ("yes", "no") else Parsed(None, "no_yes_or_no")
