"""Writing a set: JSONL with relative paths, parquet or a ``save_to_disk`` folder with the images inside.

A set appears whole, by rename, or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from virft.data.builders.workplace import MANIFEST_SUFFIX, naming_disk_faults, replacing_tree
from virft.errors import UserError

Kind = Literal["jsonl", "parquet", "folder"]
ROW_GROUP = 100
"""Rows of a parquet row group: with an image each, some ten megabytes, which readers hold in memory at
once."""


@dataclass(frozen=True)
class Target:
    """Where a set goes and in which form. Picklable: workers encode rows with it."""

    path: Path
    kind: Kind

    @classmethod
    def of(cls, path: str | Path) -> Target:
        """The form by the name: ``.jsonl``, ``.parquet``, and without a suffix a folder of ``save_to_disk``.

        Raises:
            UserError: another suffix, or a name that the system refuses.
        """
        path = Path(path)
        kinds: dict[str, Kind] = {".jsonl": "jsonl", ".parquet": "parquet", "": "folder"}
        if path.suffix not in kinds:
            raise UserError(
                f"--output {path}: must end in .jsonl or .parquet, or be a folder's name without a dot"
            )
        try:
            path.exists()
        except OSError as error:
            raise UserError(f"--output {str(path)[:200]}: {error.strerror}; name another") from None
        return cls(path, kinds[path.suffix])

    @property
    def manifest(self) -> Path:
        """The manifest's path."""
        return self.path.with_name(self.path.name + MANIFEST_SUFFIX)

    def encode(self, row: Mapping[str, Any], images: Sequence[Path], single: bool = True) -> dict[str, Any]:
        """A row as it is written: with its images' paths relative to the set, or with their bytes.

        Args:
            row: the columns but the images.
            images: paths.
            single: write the only image to the column ``image``; else all of them to ``images``.

        Raises:
            UserError: an image is absent, or a text is not UTF-8.
        """
        try:
            json.dumps([row, [image.name for image in images]], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            letter = error.object[error.start]
            raise UserError(
                f"holds {letter!r}, half of a character, which no file of rows can: mend its text or its "
                "image's name"
            ) from None
        parts = [
            _relative(image, self.path.parent) if self.kind == "jsonl" else _embedded(image)
            for image in images
        ]
        return {"image": parts[0], **row} if single else {"images": parts, **row}

    def write(
        self,
        rows: Iterable[Mapping[str, Any]],
        like: Mapping[str, Any] | None = None,
        describe: Callable[[int, Path], None] | None = None,
    ) -> int:
        """Write encoded rows; returns their number. The set appears when the last one is written.

        Args:
            rows: all with the same columns.
            like: a row without None, which tells the kinds of the columns; the first row by default.
            describe: writes the manifest of the set, called with the number of rows and where the set stands
                until it appears: a set without its manifest could not be told from a stranger's.

        Raises:
            UserError: there are no rows, or the disk is full.
        """
        stood = self.path.exists()
        try:
            with naming_disk_faults(self.path.parent), replacing_tree(self.path) as unfinished:
                count = self._write(unfinished, rows, like)
                if describe:
                    describe(count, unfinished)
        finally:
            if not stood and not self.path.exists():
                self.manifest.unlink(missing_ok=True)
        return count

    def _write(self, path: Path, rows: Iterable[Mapping[str, Any]], like: Mapping[str, Any] | None) -> int:
        import pyarrow as pa

        if self.kind == "jsonl":
            return _write_jsonl(path, rows)
        first, rows = _peek(iter(rows))
        write = _write_parquet if self.kind == "parquet" else _write_folder
        try:
            return write(path, rows, _features(like or first))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(
                f"{self.path}: a column holds values of several kinds ({error}): give it one kind, or "
                "write .jsonl"
            ) from None


@lru_cache(maxsize=16)  # the rows of one image follow one another
def _relative(image: Path, folder: Path) -> str:
    try:
        there = image.is_file()
    except OSError as error:  # a name longer than any file's
        raise UserError(f"{str(image)[:200]}: {error.strerror}; is --image_folder right?") from None
    if not there:
        raise UserError(f"{image}: no such image; is --image_folder right?")
    relative = relative_path(image, folder)
    if not relative.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in relative):
        raise UserError(f"{relative!r}: its name is not UTF-8, so no file of rows can name it: rename it")
    return relative


def relative_path(image: Path, folder: Path) -> str:
    """The path of an image as a file in ``folder`` names it. Folders that are links are followed first: ".."
    below a link leads up from where it points to."""
    return Path(os.path.relpath(_real(image.parent) / image.name, _real(folder))).as_posix()


@lru_cache(maxsize=256)
def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))


def _embedded(image: Path) -> dict[str, Any]:
    try:
        return {"bytes": image.read_bytes(), "path": image.name}
    except OSError as error:
        raise UserError(f"{image}: cannot be read ({error.strerror}); is --image_folder right?") from None


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _features(row: Mapping[str, Any]) -> Any:
    import pyarrow as pa
    from datasets import Features, Image, List

    special = {"image": Image(), "images": List(Image())}
    columns = {key: pa.array([value]) for key, value in row.items() if key not in special}
    known = Features.from_arrow_schema(pa.table(columns).schema)
    return Features({key: special.get(key) or known[key] for key in row})


def _write_parquet(path: Path, rows: Iterator[Mapping[str, Any]], features: Any) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # The schema carries the datasets library's features, so that it reads the column as images.
    schema = features.arrow_schema
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := [row for _, row in zip(range(ROW_GROUP), rows, strict=False)]:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _write_folder(path: Path, rows: Iterator[Mapping[str, Any]], features: Any) -> int:
    import datasets
    import pyarrow as pa
    from datasets import Dataset, DatasetDict
    from datasets.exceptions import DatasetGenerationError

    schema = features.arrow_schema

    def checked() -> Iterator[Mapping[str, Any]]:
        for row in rows:
            for key, value in row.items():
                if key not in ("image", "images"):  # the library's own words for a wrong kind are none
                    pa.array([value], schema.field(key).type)
            yield row

    cache = path.with_name(f"{path.name}.cache")
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # the builder shows its own
    try:
        # A fixed fingerprint: the library's own hashes the generator's address, and the same command must
        # give the same bytes.
        dataset = Dataset.from_generator(
            checked, features=features, cache_dir=str(cache), fingerprint="0" * 16
        )
        DatasetDict({"train": dataset}).save_to_disk(str(path))
        return len(dataset)
    except DatasetGenerationError as error:
        # The library wraps whatever the rows or the disk raised.
        raise (error.__cause__ or error) from None
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        if shown:
            datasets.enable_progress_bars()


def _peek(rows: Iterator[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Iterator[Mapping[str, Any]]]:
    first = next(rows, None)
    if first is None:
        raise UserError("no rows to write")

    def all_rows() -> Iterator[Mapping[str, Any]]:
        yield first
        yield from rows

    return first, all_rows()
