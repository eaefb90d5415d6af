"""Writing a set: JSONL with relative paths, parquet or a ``save_to_disk`` folder with the images inside.

A set appears whole, by rename, or not at all; a manifest beside it says what it was made from.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import virft
from virft.errors import UserError
from virft.files import replacing

Kind = Literal["jsonl", "parquet", "folder"]
MANIFEST_SUFFIX = ".manifest.json"
INDEX_FAULTS = (
    "disk I/O error",
    "unable to open database file",
    "attempt to write a readonly database",
    "database is locked",
)
"""What SQLite says of a disk that does not take the index; its other errors are mistakes of ours."""
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


@contextmanager
def replacing_tree(path: Path) -> Iterator[Path]:
    """As :func:`virft.files.replacing`, for a file or a folder."""
    if path.suffix:
        with replacing(path) as unfinished:
            yield unfinished
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A folder is not removed in one step: it must be out of sight before.
    old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    try:
        yield unfinished
        if path.is_dir():
            path.rename(old)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def naming_disk_faults(folder: Path) -> Iterator[None]:
    """Turn the errors of a full disk, and of a folder that cannot be made or written, into one sentence.

    Raises:
        UserError: naming the disk or the path.
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(error):
            raise UserError(
                f"{folder}: the disk is full; nothing of the set was left there: free space, or name another "
                "--output, or another --work_folder for the index"
            ) from error
        if code is None and str(error) in INDEX_FAULTS:
            raise UserError(
                f"{folder}: the index cannot be written ({error}): is a quota or a size limit reached? "
                "name another --work_folder for it"
            ) from error
        if code is None:
            raise
        raise UserError(f"{error.filename or folder}: {error.strerror}; name another --output") from error


@contextmanager
def working_folder(target: Path, parent: Path | None = None) -> Iterator[Path]:
    """A folder for temporary files of the build of ``target``; what a killed build left in it is removed.

    Args:
        target: the set.
        parent: where to make the folder; by default beside the set.

    Raises:
        UserError: another process builds the same set.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = folder = target.parent / f".{target.name}.build"
    beside.mkdir(exist_ok=True)
    with open(beside / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{target}: another process is building it ({beside} is locked)") from None
        try:
            if parent is not None:
                # Sets of one name from several folders may be built in one place.
                where = hashlib.sha256(os.fsencode(target.resolve())).hexdigest()[:8]
                folder = parent / f".{target.name}.{where}.build"
                folder.mkdir(parents=True, exist_ok=True)
            _remove_stale(target, folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(beside, ignore_errors=True)


def _remove_stale(target: Path, folder: Path) -> None:
    """Remove what a killed build of ``target`` left beside it and in its working folder."""
    # Not a glob: the name may hold a bracket, and ".a.*" would also be what a build of a.jsonl is writing.
    ours = re.compile(
        rf"\.{re.escape(target.name)}({re.escape(MANIFEST_SUFFIX)})?\.\d+(\.old)?\.tmp(\.cache)?"
    )
    stale = [path for path in target.parent.iterdir() if ours.fullmatch(path.name)]
    for path in (*stale, *(path for path in folder.iterdir() if path.name != "lock")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def fingerprint(path: Path) -> dict[str, Any]:
    """Path, size and SHA-256 of a file; of a folder, of all files in it.

    Raises:
        UserError: nothing is there.
    """
    if path.is_dir():
        return combined_fingerprint(path, (file for file in path.rglob("*") if file.is_file()))
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    return {"path": path.as_posix(), "bytes": path.stat().st_size, "sha256": _sha256(path)}


def combined_fingerprint(folder: Path, files: Iterable[Path]) -> dict[str, Any]:
    """Path of a folder, number and size of some files in it, and one SHA-256 of their names and contents."""
    total, count, size = hashlib.sha256(), 0, 0
    for file in sorted(files):
        total.update(os.fsencode(f"{file.relative_to(folder).as_posix()}\0{_sha256(file)}\n"))
        count += 1
        size += file.stat().st_size
    return {"path": folder.as_posix(), "files": count, "bytes": size, "sha256": total.hexdigest()}


def listing_sha256(items: Iterable[Sequence[str]]) -> str:
    """One SHA-256 of lines of words, such as images and their labels."""
    total = hashlib.sha256()
    for words in items:
        total.update(("\0".join(words) + "\n").encode(errors="surrogateescape"))
    return total.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_built(target: Target, settings: Mapping[str, Any], overwrite: bool = False) -> bool:
    """Whether the set stands there as these settings build it. Settings hold the sources' fingerprints.

    Args:
        target: the set.
        settings: as :func:`write_manifest` writes them.
        overwrite: whether what stands there may be replaced.

    Raises:
        UserError: something else stands there, or what must not be replaced.
    """
    source = settings.get("source", {}).get("path")
    if source is not None and target.path.resolve() == Path(source).resolve():
        raise UserError(f"--output {target.path} is the source itself; name another")
    if not target.path.exists():
        return False
    _check_replaceable(target)
    if overwrite:
        return False
    made = _read_manifest(target)
    if made.get("settings") == settings and made.get("output") == fingerprint(target.path):
        return True
    raise UserError(f"{target.path}: exists and was not built so: pass --overwrite, or another --output")


def _read_manifest(target: Target) -> dict[str, Any]:
    """The manifest beside a set; empty where there is none, or what stands there is none."""
    try:
        made = json.loads(target.manifest.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}


def _check_replaceable(target: Target) -> None:
    """Refuse to replace what no builder wrote.

    Raises:
        UserError: where a file should go stands a folder or the other way round; or a folder that holds
            anything but a set.
    """
    path = target.path
    if path.is_dir() != (target.kind == "folder"):
        kinds = ("file", "folder") if path.is_dir() else ("folder", "file")
        raise UserError(f"--output {path}: a {kinds[1]} stands where a {kinds[0]} is to be written")
    if path.is_dir() and any(path.iterdir()) and not (path / "dataset_dict.json").is_file():
        raise UserError(f"--output {path}: a folder that is no set of rows is not replaced; name another")


def write_manifest(
    target: Target, command: str, settings: Mapping[str, Any], counts: Mapping[str, Any], written: Path
) -> None:
    """Write the manifest beside a set. It holds no time and no machine: the same command gives the same
    bytes.

    Args:
        target: the set.
        command: as the user typed it.
        settings: every option that the rows depend on, and the sources' fingerprints.
        counts: of what was found, kept and left out.
        written: where the set stands, which is about to be renamed to its place.
    """
    manifest = {
        "command": command,
        "virft": virft.__version__,
        "settings": settings,
        "counts": counts,
        "output": {**fingerprint(written), "path": target.path.as_posix()},
    }
    with naming_disk_faults(target.path.parent), replacing(target.manifest) as unfinished:
        unfinished.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
