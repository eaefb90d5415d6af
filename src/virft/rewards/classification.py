"""The classification reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from virft import parsing
from virft.errors import UserError
from virft.rewards.outcome import Outcome


def accuracy(reply: str, columns: Mapping[str, Any]) -> Outcome:
    """1 when the answer names the solution's class or one of its aliases, else 0.

    Names are equal after :func:`virft.parsing.normalize_class`; a name inside of another is not that name.
    The optional column ``aliases`` holds further names of the row's class: a list of texts, or one text.

    Raises:
        UserError: the column ``aliases`` is neither.
    """
    truth = parsing.parse_class(columns["solution"])
    if not truth.ok or parsing.parse_detections(columns["solution"]).value:  # boxes: a row of another task
        return Outcome(0.0, "bad_solution")
    answer = parsing.parse_class(reply)
    if not answer.ok:
        return Outcome(0.0, answer.reason)
    names = (truth.value, *_aliases(columns.get("aliases")))
    # An alias without letters or digits would equal nothing but an unreadable answer, which is refused above.
    accepted = {parsing.normalize_class(name) for name in names if isinstance(name, str)}
    return Outcome(1.0) if parsing.normalize_class(answer.value) in accepted else Outcome(0.0, "wrong_class")


def _aliases(column: Any) -> Sequence[Any]:
    if isinstance(column, str):
        return (column,)
    if column is None or isinstance(column, list | tuple):
        return column or ()
    raise UserError(
        f"reward accuracy: column 'aliases' must be a text or a list of texts, got {type(column).__name__}"
    )
