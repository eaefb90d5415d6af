"""An index of a source's annotations on disk, so that a million of them need no more memory than a thousand.

SQLite of the standard library holds images, boxes and, once the rules have been applied, pairs of image and
category; every later choice (categories, shots, negatives) is a query. The file is temporary.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from virft.boxes import Size
from virft.data.builders.entries import BoxEntry, CategoryEntry, Entry, ImageEntry, image_size
from virft.data.builders.ordered import ordered_map
from virft.data.builders.rules import BoxRules, RawBox, judge
from virft.errors import UserError

BATCH = 10_000
"""Entries written to the index at once."""
CHUNK = 2_000
"""Images that one worker judges at once."""
SHOWN = 5
"""How many wrong boxes an error names before it counts the rest."""

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -65536;
CREATE TABLE categories (position INTEGER PRIMARY KEY, id TEXT UNIQUE, name TEXT, synonyms TEXT);
CREATE TABLE images (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, path TEXT, width INT, height INT, absent TEXT, incomplete TEXT
);
CREATE TABLE boxes (
    image TEXT, category TEXT, x REAL, y REAL, width REAL, height REAL, crowd INT, place TEXT
);
CREATE TABLE pairs (image INT, category INT, boxes TEXT, PRIMARY KEY (image, category)) WITHOUT ROWID;
CREATE TABLE left_out (image INT, category INT, reason TEXT, PRIMARY KEY (image, category)) WITHOUT ROWID;
CREATE TABLE chosen (image INT, category INT, boxes TEXT, PRIMARY KEY (image, category)) WITHOUT ROWID;
"""


@dataclass
class Counts:
    """How many entries the source had."""

    images: int = 0
    boxes: int = 0
    categories: int = 0
    images_without_boxes: int = 0
    images_left_out: int = 0


class Index:
    """The index in the file ``path``; make it with :meth:`load`, then :meth:`judge_pairs`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path)
        self.connection.executescript(_TABLES)
        self.counts = Counts()

    def close(self) -> None:
        """Close the file; it is left to the holder of its folder to remove it."""
        self.connection.close()

    def load(self, entries: Iterable[Entry], source: str, progress: Callable[[int], None]) -> None:
        """Write every entry of a source.

        Args:
            entries: from a reader of :mod:`.readers`.
            source: what the messages call the source.
            progress: called with the number of entries written by each batch.

        Raises:
            UserError: an image or a category twice, a box without its image or of an unknown category, no
                images.
        """
        iterator = iter(entries)
        while batch := list(itertools.islice(iterator, BATCH)):
            self._write(batch, source)
            progress(len(batch))
        self.connection.execute("CREATE INDEX boxes_of_image ON boxes (image)")
        self._check(source)

    def _write(self, batch: Sequence[Entry], source: str) -> None:
        groups: dict[type, list[tuple]] = {CategoryEntry: [], ImageEntry: [], BoxEntry: []}
        for entry in batch:
            groups[type(entry)].append(_values(entry))
        try:
            for kind, statement in _INSERTS.items():
                self.connection.executemany(statement, groups[kind])
        except sqlite3.IntegrityError as error:
            what = "image" if "images" in str(error) else "category"
            raise UserError(
                f"{source}: two {what} entries have the same id{self._twin(what, groups)}"
            ) from error
        except UnicodeEncodeError as error:
            raise UserError(
                f"{source}: {error.object!r} is not UTF-8 text, so no file of rows can hold it: rename it"
            ) from None

    def _twin(self, what: str, groups: dict[type, list[tuple]]) -> str:
        """The id that stands twice, for the message."""
        table, kind = ("images", ImageEntry) if what == "image" else ("categories", CategoryEntry)
        seen = Counter(values[0] for values in groups[kind])
        known = (
            values[0]
            for values in groups[kind]
            if self._one(f"SELECT 1 FROM {table} WHERE id = ?", values[0])
        )
        twin = next((i for i, count in seen.items() if count > 1), None) or next(known, None)
        return f": {twin}" if twin is not None else ""

    def _check(self, source: str) -> None:
        counts = self.counts
        for name in ("images", "boxes", "categories"):
            setattr(counts, name, self._one(f"SELECT COUNT(*) FROM {name}")[0])
        if not counts.images:
            raise UserError(f"{source}: no images")
        if not counts.categories:
            raise UserError(f"{source}: no categories, so there is nothing to ask for")
        for column, table in (("image", "images"), ("category", "categories")):
            of_unknown = f"FROM boxes WHERE {column} NOT IN (SELECT id FROM {table})"
            if row := self._one(f"SELECT place, {column} {of_unknown} LIMIT 1"):
                total = self._one(f"SELECT COUNT(*) {of_unknown}")[0]
                raise UserError(
                    f"{source}: {row[0]} is of {column} {row[1]}, which is not among the {table} "
                    f"({total} of {counts.boxes} annotations are so): add the {column} or remove them"
                )
        counts.images_without_boxes = self._one(
            "SELECT COUNT(*) FROM images WHERE id NOT IN (SELECT image FROM boxes)"
        )[0]

    def leave_out(self, ids: Iterable[str]) -> int:
        """Forget these images and their boxes, as if the source had none of them; how many there were. They
        stay in the counts of the source."""
        before = self.connection.total_changes
        self.connection.executemany("DELETE FROM images WHERE id = ?", ((i,) for i in ids))
        gone = self.connection.total_changes - before
        self.counts.images_left_out += gone
        self.connection.execute("DELETE FROM boxes WHERE image NOT IN (SELECT id FROM images)")
        return gone

    def judge_pairs(
        self,
        rules: BoxRules,
        extent: Callable[[Size], tuple[float, float]],
        image_folder: Path,
        leave_out_wrong: bool,
        source: str,
        processes: int,
        progress: Callable[[int], None],
    ) -> None:
        """Apply the rules to every pair of image and category that has a box.

        Args:
            rules: the rules.
            extent: an image's size in pixels -> its extent in the space of the rows; must be picklable.
            image_folder: where images lie whose size the source does not say.
            leave_out_wrong: leave pairs with wrong boxes out and count them, instead of stopping.
            source: what the messages call the source.
            processes: how many judge at once.
            progress: called with the number of images judged.

        Raises:
            UserError: wrong boxes, naming the first few.
        """
        self.connection.commit()
        faults: list[tuple[str, str]] = []
        wrong = 0
        work = partial(_judge_chunk, self.path, rules, extent, image_folder)
        for start, pairs, left_out, found in ordered_map(work, self._starts(), processes):
            self.connection.executemany("INSERT INTO pairs VALUES (?, ?, ?)", pairs)
            self.connection.executemany("INSERT INTO left_out VALUES (?, ?, ?)", left_out)
            wrong += len(found)
            faults += found[: SHOWN - len(faults)]
            progress(min(CHUNK, self.counts.images - start))
        if wrong and not leave_out_wrong:
            named = "; ".join(f"{place} is {why}" for place, why in faults)
            more = f"; and {wrong - len(faults)} more" if wrong > len(faults) else ""
            raise UserError(
                f"{source}: {named}{more}: mend them, or leave their pairs out with --leave_out_wrong"
            )
        self.connection.execute("CREATE INDEX pairs_of_category ON pairs (category)")
        self.connection.commit()

    def _starts(self) -> range:
        return range(0, self.counts.images, CHUNK)

    def categories(self) -> list[dict[str, Any]]:
        """The categories as a COCO file has them; a category's place in the list is its position."""
        found = self.rows("SELECT id, name, synonyms FROM categories ORDER BY position")
        return [{"id": i, "name": name, "synonyms": json.loads(synonyms)} for i, name, synonyms in found]

    def names(self) -> list[str]:
        """Category names by position."""
        return [category["name"] for category in self.categories()]

    def rows(self, statement: str, *values: object) -> Iterator[tuple]:
        """The rows of a query, one at a time."""
        return iter(self.connection.execute(statement, values))

    def _one(self, statement: str, *values: object) -> tuple | None:
        return self.connection.execute(statement, values).fetchone()


def _values(entry: Entry) -> tuple:
    if isinstance(entry, BoxEntry):
        return entry.image, entry.category, *entry.xywh, int(entry.crowd), entry.place
    if isinstance(entry, ImageEntry):
        absent = None if entry.absent is None else json.dumps(entry.absent)
        return entry.id, entry.path, entry.width, entry.height, absent, json.dumps(entry.incomplete)
    return entry.id, entry.name, json.dumps(entry.synonyms)


# Positions and numbers start at 0, in the order of the source.
_NEXT = "INSERT INTO {0} SELECT (SELECT COALESCE(MAX({1}) + 1, 0) FROM {0}), {2}"
_INSERTS = {
    CategoryEntry: _NEXT.format("categories", "position", "?, ?, ?"),
    ImageEntry: _NEXT.format("images", "number", "?, ?, ?, ?, ?, ?"),
    BoxEntry: "INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
}


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection of a worker's own."""
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)


def size_of(path: str, width: int | None, height: int | None, image_folder: Path) -> Size:
    """The size that the source says, else the image's own."""
    if width and height and width > 0 and height > 0:
        return int(width), int(height)
    return image_size(image_folder / path)


def _judge_chunk(
    database: Path,
    rules: BoxRules,
    extent: Callable[[Size], tuple[float, float]],
    image_folder: Path,
    start: int,
) -> tuple[int, list[tuple[int, int, str]], list[tuple[int, int, str]], list[tuple[str, str]]]:
    """Pairs, pairs left out and wrong boxes of images ``start`` to ``start + CHUNK - 1``."""
    pairs, left_out, faults = [], [], []
    connection = open_read_only(database)
    rows = connection.execute(
        "SELECT i.number, c.position, c.id, i.path, i.width, i.height, i.incomplete,"
        " b.x, b.y, b.width, b.height, b.crowd, b.place"
        " FROM images i JOIN boxes b ON b.image = i.id JOIN categories c ON c.id = b.category"
        " WHERE i.number >= ? AND i.number < ? ORDER BY i.number, c.position, b.rowid",
        (start, start + CHUNK),
    )
    for (number, position), group in itertools.groupby(rows, key=lambda row: row[:2]):
        found = list(group)
        _, _, category, path, width, height, incomplete = found[0][:7]
        # SQLite stores NaN as NULL.
        boxes = [
            RawBox(row[12], tuple(float("nan") if v is None else v for v in row[7:11]), bool(row[11]))
            for row in found
        ]
        size = size_of(path, width, height, image_folder)
        unfinished = incomplete != "[]" and category in json.loads(incomplete)
        verdict = judge(boxes, size, rules, unfinished, extent(size))
        faults += verdict.faults
        if verdict.reason:
            left_out.append((number, position, verdict.reason))
        else:
            pairs.append((number, position, json.dumps([list(box) for box in verdict.boxes])))
    connection.close()
    return start, pairs, left_out, faults
