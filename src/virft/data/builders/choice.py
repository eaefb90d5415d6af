"""Choosing rows by a seed: k images a category, a number of rows, a share of negatives.

Every choice takes the smallest hashes of (seed, words), never a random generator: so it is the same on every
machine and Python version, does not depend on the order of the annotations, and k shots are among k + 1
shots.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from virft.data.builders.index import Index
from virft.errors import UserError

T = TypeVar("T")
TRIES = 200
"""Draws for each negative before it is held that there are not so many."""


def rank(seed: int, *words: object) -> int:
    """A number of 64 bits that depends on nothing but the arguments."""
    text = "\0".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def shots(items: Iterable[T], label: Callable[[T], Hashable], key: Callable[[T], int], count: int) -> list[T]:
    """``count`` items of every label (all where there are fewer), in the order of ``items``.

    Args:
        items: what to choose from.
        label: an item's label.
        key: an item's rank; the smallest are chosen.
        count: how many of each label.
    """
    groups: dict[Hashable, list[tuple[int, int, T]]] = {}
    for position, item in enumerate(items):
        groups.setdefault(label(item), []).append((key(item), position, item))
    chosen = (
        entry for group in groups.values() for entry in heapq.nsmallest(count, group, key=lambda e: e[:2])
    )
    return [item for _, _, item in sorted(chosen, key=lambda entry: entry[1])]


@dataclass(frozen=True)
class Choice:
    """Which pairs become rows.

    Attributes:
        categories: positions of the categories that are asked for.
        shots: images of each category; 0: all.
        rows: rows in all, negatives among them; 0: all. Not together with ``shots``.
        negatives: share of the rows that ask for a category which the image does not show, in [0, 1).
        seed: of every choice.
    """

    categories: tuple[int, ...]
    shots: int = 0
    rows: int = 0
    negatives: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for a value outside its range."""
        if min(self.shots, self.rows) < 0 or (self.shots and self.rows):
            raise UserError("--shots and --rows must not be negative, and only one of them can be given")
        if not 0 <= self.negatives < 1:
            raise UserError(f"--negatives {self.negatives}: a share of the rows, at least 0 and less than 1")


@dataclass(frozen=True)
class Chosen:
    """What a choice took.

    Attributes:
        positives, negatives: rows with boxes, rows without.
        wanted_negatives: how many were to be without.
        short: (name, images found) of the categories short of shots.
        left_out: (category name, reason, pairs) of the pairs of the asked categories that the rules left out.
    """

    positives: int
    negatives: int
    wanted_negatives: int
    short: tuple[tuple[str, int], ...] = ()
    left_out: tuple[tuple[str, str, int], ...] = ()


def choose(index: Index, choice: Choice) -> Chosen:
    """Fill the index's table ``chosen``. The index must have judged its pairs."""
    short: list[tuple[str, int]] = []
    names = index.names()
    if choice.shots:
        for category in choice.categories:
            pairs = _smallest(_of_category(index, category), choice.shots, choice.seed, names)
            _keep(index, pairs)
            if len(pairs) < choice.shots:
                short.append((names[category], len(pairs)))
    elif choice.rows:
        wanted = choice.rows - round(choice.rows * choice.negatives)
        if not wanted:
            raise UserError(
                f"--rows {choice.rows} with --negatives {choice.negatives} leaves no row with boxes: raise "
                "--rows"
            )
        every = (pair for category in choice.categories for pair in _of_category(index, category))
        _keep(index, _smallest(every, wanted, choice.seed, names))
    else:
        for category in choice.categories:
            index.connection.execute(
                "INSERT INTO chosen SELECT image, category, boxes FROM pairs WHERE category = ?", (category,)
            )
    positives = _count(index)
    wanted = round(positives * choice.negatives / (1 - choice.negatives))
    if choice.rows and positives == choice.rows - round(choice.rows * choice.negatives):
        wanted = choice.rows - positives  # both roundings together may miss the number of rows by one
    _add_negatives(index, choice, names, wanted)
    index.connection.execute("CREATE INDEX chosen_of_category ON chosen (category)")
    index.connection.commit()
    asked = set(choice.categories)
    left_out = index.rows("SELECT category, reason, COUNT(*) FROM left_out GROUP BY category, reason")
    named = tuple((names[category], why, count) for category, why, count in left_out if category in asked)
    return Chosen(positives, _count(index) - positives, wanted, tuple(short), named)


def _of_category(index: Index, category: int) -> Iterator[tuple[int, int, str, str]]:
    return index.rows(
        "SELECT p.image, p.category, p.boxes, i.id FROM pairs p JOIN images i ON i.number = p.image"
        " WHERE p.category = ?",
        category,
    )


def _smallest(pairs: Iterable[tuple], count: int, seed: int, names: Sequence[str]) -> list[tuple]:
    """The ``count`` pairs (image, category, boxes, image id) of the smallest rank; a tie goes by image
    number."""
    return heapq.nsmallest(count, pairs, key=lambda pair: (rank(seed, names[pair[1]], pair[3]), pair[0]))


def _keep(index: Index, pairs: Iterable[tuple]) -> None:
    index.connection.executemany("INSERT INTO chosen VALUES (?, ?, ?)", (pair[:3] for pair in pairs))


def _count(index: Index) -> int:
    return next(index.rows("SELECT COUNT(*) FROM chosen"))[0]


def _add_negatives(index: Index, choice: Choice, names: Sequence[str], wanted: int) -> None:
    if not wanted:
        return
    verified = next(index.rows("SELECT EXISTS (SELECT 1 FROM images WHERE absent IS NOT NULL)"))[0]
    if verified or choice.shots:
        candidates = (_verified if verified else _among_chosen)(index, choice)
        _keep(index, _smallest(candidates, wanted, choice.seed, names))
        return
    images, added = index.counts.images, 0
    for draw in range(TRIES * wanted):
        drawn = rank(choice.seed, "negative", draw)
        image = drawn % images
        category = choice.categories[drawn // images % len(choice.categories)]
        if _is_free(index, image, category):
            _keep(index, [(image, category, "[]")])
            added += 1
            if added == wanted:
                return


def _is_free(index: Index, image: int, category: int) -> bool:
    """Whether the image is there and shows nothing of the category, for all that the source says."""
    # Numbers have gaps where images were left out.
    (there,) = next(index.rows("SELECT EXISTS (SELECT 1 FROM images WHERE number = ?)", image))
    return bool(there) and not any(
        next(
            index.rows(
                f"SELECT EXISTS (SELECT 1 FROM {table} WHERE image = ? AND category = ?)", image, category
            )
        )[0]
        for table in ("pairs", "left_out", "chosen")
    )


def _verified(index: Index, choice: Choice) -> Iterator[tuple[int, int, str, str]]:
    """Pairs that the source verified to be negative (LVIS); with shots only of the images that were
    chosen."""
    positions = dict(index.rows("SELECT id, position FROM categories"))
    asked = set(choice.categories)
    among = " AND number IN (SELECT image FROM chosen)" if choice.shots else ""
    for number, image, absent in index.rows(
        f"SELECT number, id, absent FROM images WHERE absent IS NOT NULL{among}"
    ):
        for category in json.loads(absent):
            position = positions.get(category)
            if position in asked and _is_free(index, number, position):
                yield number, position, "[]", image


def _among_chosen(index: Index, choice: Choice) -> Iterator[tuple[int, int, str, str]]:
    """With shots no further image is used: negatives ask the chosen images for the other categories."""
    for number, image in list(
        index.rows("SELECT number, id FROM images WHERE number IN (SELECT image FROM chosen) ORDER BY number")
    ):
        for category in choice.categories:
            if _is_free(index, number, category):
                yield number, category, "[]", image
