"""Classification numbers: strict accuracy beside the paper's lenient rule, classes, frequent mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from virft import parsing
from virft.errors import UserError
from virft.types import Prediction

NUMBERS = ("accuracy", "accuracy_paper_rule", "mean_class_accuracy", "images", "off_list", "reasons")
"""The fields of :class:`ClassificationScore` that are not tables."""


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class: how many images, and how many replies were right, right by the paper's rule, unreadable."""

    name: str
    images: int
    right: int
    right_paper_rule: int
    unreadable: int

    @property
    def accuracy(self) -> float:
        """The strict share in [0, 1]."""
        return self.right / self.images


@dataclass(frozen=True, slots=True)
class Confusion:
    """A mistake: images of ``truth`` answered ``answer`` (a class name where it is one), and how often."""

    truth: str
    answer: str
    count: int


@dataclass(frozen=True, slots=True)
class Judged:
    """One reply: the sample's id, its class, what was answered ("" when unreadable), and the verdicts."""

    id: str
    truth: str
    answer: str
    right: bool
    right_paper_rule: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ClassificationScore:
    """All numbers of a run.

    Attributes:
        accuracy: share of images whose answer equals the class (or an alias) after normalisation.
        accuracy_paper_rule: the same share by :func:`paper_rule`, for comparison with published tables.
        mean_class_accuracy: mean over classes of their accuracy.
        images: number of images.
        off_list: readable answers that name none of the classes.
        reasons: reason code -> number of replies; "ok" counts the readable ones.
        classes: one row per class that has images, in the order of the class list.
        confusions: mistakes, most frequent first.
        rows: one verdict per prediction, in the order given.
    """

    accuracy: float
    accuracy_paper_rule: float
    mean_class_accuracy: float
    images: int
    off_list: int
    reasons: dict[str, int]
    classes: tuple[ClassRow, ...]
    confusions: tuple[Confusion, ...]
    rows: tuple[Judged, ...] = field(repr=False)


def score(predictions: Iterable[Prediction], classes: Sequence[str] = ()) -> ClassificationScore:
    """Judge replies against ``meta["label"]`` and ``meta["aliases"]``.

    Args:
        predictions: of one data set.
        classes: the class names; without them those of the predictions.

    Raises:
        UserError: a prediction without a label, or none at all.
    """
    predictions = list(predictions)
    if not predictions:
        raise UserError("no prediction to score")
    canonical = {parsing.normalize_class(name): name for name in classes}
    for prediction in predictions:
        label = prediction.meta.get("label")
        if not isinstance(label, str) or not label:
            raise UserError(f"prediction {prediction.id!r} has no class label in its meta")
        canonical.setdefault(parsing.normalize_class(label), label)
    # After all labels: a class's own name goes before another's alias.
    for prediction in predictions:
        label = canonical[parsing.normalize_class(prediction.meta["label"])]
        for name in prediction.meta.get("aliases", ()):
            canonical.setdefault(parsing.normalize_class(name), label)
    rows = tuple(_judge(prediction, canonical) for prediction in predictions)
    order = {name: number for number, name in enumerate(dict.fromkeys(canonical.values()))}
    table = _by_class(rows, order)
    mistakes = Counter((row.truth, row.answer or f"({row.reason})") for row in rows if not row.right)
    return ClassificationScore(
        accuracy=sum(row.right for row in rows) / len(rows),
        accuracy_paper_rule=sum(row.right_paper_rule for row in rows) / len(rows),
        mean_class_accuracy=sum(row.accuracy for row in table) / len(table),
        images=len(rows),
        off_list=sum(row.reason == "ok" and row.answer not in order for row in rows),
        reasons=dict(Counter(row.reason for row in rows).most_common()),
        classes=table,
        confusions=tuple(Confusion(*pair, count) for pair, count in mistakes.most_common()),
        rows=rows,
    )


def _judge(prediction: Prediction, canonical: dict[str, str]) -> Judged:
    truth = prediction.meta["label"]
    parsed = parsing.parse_class(prediction.reply)
    key = parsing.normalize_class(parsed.value) if parsed.ok else ""
    accepted = {parsing.normalize_class(name) for name in (truth, *prediction.meta.get("aliases", ()))}
    return Judged(
        id=prediction.id,
        # Labels that no reply can tell apart, such as "Red rose" and "red_rose", are one class.
        truth=canonical[parsing.normalize_class(truth)],
        answer=canonical.get(key, parsed.value) if parsed.ok else "",
        right=parsed.ok and key in accepted,
        right_paper_rule=paper_rule(prediction.reply, truth),
        reason=parsed.reason,
    )


def _by_class(rows: Sequence[Judged], order: dict[str, int]) -> tuple[ClassRow, ...]:
    members: dict[str, list[Judged]] = {}
    for row in rows:
        members.setdefault(row.truth, []).append(row)
    return tuple(
        ClassRow(
            name=name,
            images=len(group),
            right=sum(row.right for row in group),
            right_paper_rule=sum(row.right_paper_rule for row in group),
            unreadable=sum(row.reason != "ok" for row in group),
        )
        for name, group in sorted(members.items(), key=lambda item: order[item[0]])
    )


def paper_rule(reply: str, truth: str) -> bool:
    """The Visual-RFT reference's verdict: one text contains the other, without spaces, underscores and case.

    It reads replies in its own way, kept here so that published numbers can be compared: the first
    ``<answer>...</answer>`` that stands on one line, else the whole reply. So an empty answer, one letter of
    the name, a list of every class, or a class named in the reasoning alone may count as right: that is why
    :attr:`ClassificationScore.accuracy` is the number to report.
    """
    answer, name = (_squeezed(_reference_answer(text)) for text in (reply, truth))
    return answer in name or name in answer


def _reference_answer(text: str) -> str:
    opening, closing = "<answer>", "</answer>"
    for line in text.split("\n"):
        start = line.find(opening)
        end = line.find(closing, start + len(opening)) if start >= 0 else -1
        if end >= 0:
            return line[start + len(opening) : end].strip()
    return text.strip()


def _squeezed(text: str) -> str:
    return text.replace(" ", "").replace("_", "").lower()
