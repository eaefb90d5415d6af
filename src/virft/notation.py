"""Nested lists and objects of any text, as models write them: the brackets under :mod:`virft.parsing`.

:func:`read_notation` takes any text, never raises, takes time linear in its length and evaluates nothing.

**Lists and objects.** JSON and Python spellings alike: single, double or typographic quotes, keys without
quotes, parentheses for brackets, trailing commas, ``...`` at the end, code fences and words around the
list. A quote ends its string only where a comma, colon, closing bracket or the end follows, so apostrophes
inside strings are harmless. An object counts when it is closed; what is cut off or
closed by the wrong bracket is dropped and noted, and the other boxes stay.

**Numbers** are decimal digits of any script with an optional sign, fraction and exponent, at most 40
characters, bare or in quotes. True, null, NaN, Infinity, hexadecimal, percent signs and digit groups are no
numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(r"""[\[\](){}:,]|['"]|[^\s\[\](){}:,'"]+""")
# Possessive: an unterminated string is given up at once instead of being retried character by character.
_STRING_REST = {
    quote: re.compile(
        rf"((?:[^\\{quote}]|\\.|{quote}(?!\s*(?:[,:\])}}]|\Z)))*+){quote}",
        re.DOTALL,
    )
    for quote in "'\""
}
_STRAIGHT_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'"})
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_NUMBER_LENGTH = 40
_PAIR = {"[": "]", "(": ")", "{": "}"}
_OUTSIDE = frozenset("'\",:])}")
_DEPTH = 32


class List(list):
    """A closed list: scalars (str), lists and objects. ``sound`` is False when commas or brackets were
    off; ``span`` is where what its brackets hold stands in the reply."""

    __slots__ = ("opener", "sound", "span")


class Object(dict):
    """A closed object: lower-case key -> scalar, list, object, or None where the value is no single value."""

    __slots__ = ("opener", "sound", "span")


class _Frame:
    """A bracket that is still open."""

    __slots__ = ("begin", "closer", "colon", "fresh", "holds_scalar", "key", "node")

    def __init__(self, opener: str, begin: int) -> None:
        self.closer = _PAIR[opener]
        self.begin = begin
        self.node: List | Object = Object() if opener == "{" else List()
        self.node.opener, self.node.sound = opener, True
        self.fresh = True  # a list: no value since the last comma; an object: no value since the colon
        self.key: str | None = None
        self.colon = False
        self.holds_scalar = False

    def put(self, value: str | List | Object) -> None:
        if isinstance(self.node, List):
            # Two scalars without a comma are not two values; two objects without one still are.
            if isinstance(value, str):
                self.node.sound = self.node.sound and self.fresh
                self.holds_scalar = True
            self.node.append(value)
            self.fresh = False
        elif not self.colon:
            self.key = value.strip().casefold() if isinstance(value, str) and self.key is None else None
        elif self.key is not None:
            self.node.pop(self.key, None)  # so that the last one written is also the last one kept
            self.node[self.key] = value if self.fresh else None
            self.fresh = False

    def comma(self) -> None:
        if isinstance(self.node, List) and self.fresh:
            self.node.sound = False
        self.fresh, self.key, self.colon = True, None, False

    def colon_after_key(self) -> None:
        if isinstance(self.node, List):
            self.node.sound = False
        self.fresh, self.colon = True, True


@dataclass(slots=True)
class Notation:
    """What a text holds outside of objects.

    Attributes:
        items: in order, words outside of all brackets (str), objects, and lists that hold scalars or nothing.
        in_lists: the scalars of those lists.
        cut: why the text was not read to its end, or None.
    """

    items: list[str | List | Object] = field(default_factory=list)
    in_lists: list[str] = field(default_factory=list)
    cut: str | None = None

    def nodes(self) -> list[List | Object]:
        """The items that are lists or objects."""
        return [item for item in self.items if not isinstance(item, str)]

    def words(self) -> list[str]:
        """The items that are words."""
        return [item for item in self.items if isinstance(item, str)]


def read_notation(text: str, offset: int = 0) -> Notation:
    """What a text holds.

    Args:
        text: any text.
        offset: where it begins in the reply; the spans of what is read count from the reply's beginning.
    """
    return _Reader(offset).read(straight_quotes(text))


class _Reader:
    """Reads a text once, bracket by bracket, without recursion; it begins at ``offset`` in the reply."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.found = Notation()
        self.stack: list[_Frame] = []
        self.open_brackets = {"]": 0, ")": 0, "}": 0}

    def read(self, text: str) -> Notation:
        position = 0
        while token := _TOKEN.search(text, position):
            mark, position = token[0], token.end()
            if mark in _PAIR:
                if len(self.stack) == _DEPTH:
                    return self.stop("too_deep")
                self.stack.append(_Frame(mark, position))
                self.open_brackets[_PAIR[mark]] += 1
            elif not self.stack:
                if mark not in _OUTSIDE:
                    self.found.items.append(mark)
            elif mark in "'\"":
                rest = _STRING_REST[mark].match(text, position)
                if rest is None:
                    return self.stop("truncated")
                position = rest.end()
                self.scalar(rest[1])
            elif mark in self.open_brackets:
                if self.open_brackets[mark]:
                    self.close(mark, token.start())
            elif mark == ",":
                self.stack[-1].comma()
            elif mark == ":":
                self.stack[-1].colon_after_key()
            else:
                self.scalar(mark)
        return self.stop("truncated" if self.stack else None)

    def stop(self, cut: str | None) -> Notation:
        self.found.cut = cut
        return self.found

    def scalar(self, text: str) -> None:
        self.stack[-1].put(text)
        if not self.open_brackets["}"]:
            self.found.in_lists.append(text)

    def close(self, mark: str, end: int) -> None:
        """Close the innermost bracket that ``mark`` fits; those within it were closed wrongly."""
        sound = True
        while True:
            frame = self.stack.pop()
            self.open_brackets[frame.closer] -= 1
            sound = sound and frame.closer == mark
            node = frame.node
            node.sound = node.sound and sound
            node.span = (self.offset + frame.begin, self.offset + end)
            if self.stack:
                self.stack[-1].put(node)
            if not self.open_brackets["}"] and (frame.holds_scalar or not node or isinstance(node, Object)):
                self.found.items.append(node)
            if frame.closer == mark:
                return


def straight_quotes(text: str) -> str:
    """The text with typographic quotes as plain ones, character by character."""
    return text.translate(_STRAIGHT_QUOTES)


def number_of(text: str) -> float | None:
    """The number that a scalar spells; None where it spells none."""
    text = text.strip() if len(text) <= 2 * _NUMBER_LENGTH else text
    return float(text) if len(text) <= _NUMBER_LENGTH and _NUMBER.fullmatch(text) else None


def numbers_of(value: str | List | Object | None) -> list[float] | None:
    """The numbers of a list, nested lists flattened; None where anything else is in it."""
    if not isinstance(value, List) or not value.sound:
        return None
    numbers: list[float] = []
    for item in value:
        inner = [number_of(item)] if isinstance(item, str) else numbers_of(item)
        if inner is None or None in inner:
            return None
        numbers += inner
    return numbers
