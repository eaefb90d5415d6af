"""F1 and exact match of short answers: MAT-Search, MAT-Coding, the multi-hop sets.

The normalisation is SQuAD's (https://rajpurkar.github.io/SQuAD-explorer/, evaluate-v2.0): lower case, no
ASCII punctuation, no articles. Visual-ARFT's scorer departs from it in two ways, both kept because its tables
rest on them: the overlap counts *distinct* words while precision and recall divide by all words (SQuAD counts
repeats: ``overlap="counts"``), and for MAT-Coding text that holds Chinese is compared character by character.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from virft.errors import UserError

Scheme = Literal["search", "coding"]
SCHEMES: tuple[Scheme, ...] = ("search", "coding")
"""``search``: SQuAD's normalisation. ``coding``: full-width punctuation goes too, and Chinese is compared by
character."""

Overlap = Literal["distinct", "counts"]
FULL_WIDTH = "，。！？；：“”‘’（）【】《》、—·"  # noqa: RUF001 - these characters are the point
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_PUNCTUATION = {
    "search": str.maketrans("", "", string.punctuation),
    "coding": str.maketrans("", "", string.punctuation + FULL_WIDTH),
}


def normalise(answer: str, scheme: Scheme = "search") -> str:
    """What is compared: lower case, no punctuation; words without articles, Chinese without spaces."""
    text = answer.lower().translate(_PUNCTUATION[scheme])
    if scheme == "coding" and _CHINESE.search(text):
        # Line breaks stay, as in the reference: they count as a character each.
        return text.replace(" ", "")
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(answer: str | None, truths: str | Sequence[str], scheme: Scheme = "search") -> float:
    """1.0 when the normalised answer equals a normalised truth, else 0.0; 0.0 for a missing answer."""
    if answer is None:
        return 0.0
    given = normalise(answer, scheme)
    return float(any(given == normalise(truth, scheme) for truth in _listed(truths)))


def f1(
    answer: str | None,
    truths: str | Sequence[str],
    scheme: Scheme = "search",
    overlap: Overlap = "distinct",
) -> float:
    """The best F1 in [0, 1] of the answer against any truth.

    An exact match is 1 even where normalisation leaves no word ("A" is an article); a missing answer is 0.

    Args:
        answer: the text in ``<answer>``, None where a reply had none.
        truths: the right answers, at least one.
        scheme: one of :data:`SCHEMES`.
        overlap: ``distinct`` counts a repeated word of the overlap once (the reference), ``counts`` as often
        as
            it stands in both (SQuAD).
    """
    if answer is None:
        return 0.0
    if exact_match(answer, truths, scheme):
        return 1.0
    return max(
        _f1(normalise(answer, scheme), normalise(truth, scheme), overlap, scheme) for truth in _listed(truths)
    )


def _f1(given: str, truth: str, overlap: Overlap, scheme: Scheme) -> float:
    by_character = scheme == "coding" and any(_CHINESE.search(text) for text in (given, truth))
    mine, theirs = (list(text) if by_character else text.split() for text in (given, truth))
    if overlap == "distinct":
        common = len(set(mine) & set(theirs))
    else:
        common = (Counter(mine) & Counter(theirs)).total()
    return 2 * common / (len(mine) + len(theirs)) if common else 0.0


def _listed(truths: str | Sequence[str]) -> Sequence[str]:
    return (truths,) if isinstance(truths, str) else truths


@dataclass(frozen=True, slots=True)
class QAScore:
    """Means in [0, 1] over all questions, how many had no answer, and (F1, EM) of each in the order given."""

    f1: float
    em: float
    questions: int
    missing: int
    rows: tuple[tuple[float, float], ...] = field(repr=False)


def score(
    pairs: Iterable[tuple[str | None, str | Sequence[str]]],
    scheme: Scheme = "search",
    overlap: Overlap = "distinct",
) -> QAScore:
    """F1 and EM over (answer, truths) pairs.

    Raises:
        UserError: no pair, or a pair without a truth (its number is named, counted from 0).
    """
    rows: list[tuple[float, float]] = []
    missing = 0
    for number, (answer, truths) in enumerate(pairs):
        if not _listed(truths):
            raise UserError(f"question {number} has no true answer to compare with")
        missing += answer is None
        rows.append((f1(answer, truths, scheme, overlap), exact_match(answer, truths, scheme)))
    if not rows:
        raise UserError("no question to score")
    return QAScore(
        f1=sum(row[0] for row in rows) / len(rows),
        em=sum(row[1] for row in rows) / len(rows),
        questions=len(rows),
        missing=missing,
        rows=tuple(rows),
    )
