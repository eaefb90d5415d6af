"""Reading text files: records one at a time (CSV with a header, a JSON list of objects, or one object a
line), and JSON or YAML documents whole."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from virft.data import json_stream
from virft.errors import UserError

RECORD_SUFFIXES = (".csv", ".json", ".jsonl")
"""Of files that :func:`records` reads."""

Record = dict[str, Any]


def records(path: Path) -> Iterator[Record]:
    """The records of a file. A list and one object a line are told apart by what stands there, not by the
    suffix.

    Messages count rows from 0, as :func:`virft.data.training.load_rows` does, and lines from 1, as editors
    do.

    Raises:
        UserError: the file cannot be read, or a row is not an object, naming it.
    """
    kind = path.suffix.lower()
    if kind not in RECORD_SUFFIXES:
        raise UserError(f"{path}: must end in {', '.join(RECORD_SUFFIXES[:-1])} or {RECORD_SUFFIXES[-1]}")
    with _naming_faults(path):
        with open(path, encoding="utf-8-sig", newline="" if kind == ".csv" else None) as file:
            if kind == ".csv":
                yield from _csv_rows(file, path)
                return
            opening = _first_character(file)
            file.seek(0)
            if opening != "[":
                yield from _json_lines(file, path)
                return
        for number, (_, row) in enumerate(json_stream.elements(path)):
            yield _object(row, path, number)


def read_text(path: Path) -> str:
    """A small file's text, without a byte order mark.

    Raises:
        UserError: it is absent, unreadable, or not UTF-8.
    """
    with _naming_faults(path):
        return path.read_text(encoding="utf-8-sig")


@contextmanager
def _naming_faults(path: Path) -> Iterator[None]:
    """Raise what goes wrong in reading a file as a UserError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(json_stream.not_utf8(path, error)) from None


def read_json(path: Path) -> Any:
    """A JSON document, whole.

    Raises:
        UserError: as :func:`read_text`, or it is not JSON; names the line.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}: not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: {json_stream.beyond_reading(error)}") from None


def read_yaml(path: Path) -> Any:
    """A YAML document, whole.

    Raises:
        UserError: as :func:`read_text`, or it is not YAML.
    """
    import yaml

    text = read_text(path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that there is not
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None


def four_numbers(values: Any) -> tuple[float, float, float, float]:
    """A box's four numbers, whatever they mean; each may be written as text.

    Raises:
        ValueError: there are not four, or one is no number.
    """
    try:
        if isinstance(values, str | dict) or any(isinstance(value, bool) for value in values):
            raise ValueError
        first, second, third, fourth = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"a box is four numbers, got {str(values)[:80]}") from None
    return first, second, third, fourth


def _first_character(file: TextIO) -> str:
    for line in file:
        if text := line.strip():
            return text[0]
    return ""


def _csv_rows(file: TextIO, path: Path) -> Iterator[Record]:
    try:
        for number, row in enumerate(csv.DictReader(file)):
            if None in row or None in row.values():
                raise UserError(f"{path} row {number}: has not as many fields as the header")
            yield row
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file: {error}") from None


def _json_lines(file: TextIO, path: Path) -> Iterator[Record]:
    numbers = itertools.count()
    # Line by line of the file: str.splitlines would also cut at U+2028, which may stand in JSON's strings.
    for line_number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if line_number == 1 and (named := _known_document(path)):
                raise UserError(f"{path}: {named}") from None
            raise UserError(f"{path} line {line_number}: not valid JSON: {error.msg}") from None
        except (RecursionError, ValueError) as error:
            raise UserError(f"{path} line {line_number}: {json_stream.beyond_reading(error)}") from None
        yield _object(row, path, next(numbers))


def _object(row: Any, path: Path, number: int) -> Record:
    if not isinstance(row, dict):
        raise UserError(f"{path} row {number}: an object was expected, got {type(row).__name__}")
    if not number and (named := _known_keys(row, path)):
        raise UserError(f"{path}: {named}")
    return row


def _known_document(path: Path) -> str:
    """What a file that begins with an object of several lines is, "" where it is not JSON either."""
    try:
        keys = {key: None for key, _ in json_stream.elements(path)}
    except UserError:
        return ""
    return _known_keys(keys, path) or "is one object, not rows: write a list of objects, or one object a line"


def _known_keys(keys: Record, path: Path) -> str:
    if {"images", "annotations", "categories"} <= keys.keys():
        return (
            f"holds COCO annotations, not rows: python dataset/build_detection.py --source {path} "
            "--image_folder FOLDER --output rows.jsonl makes rows of them"
        )
    if {"shapes", "text"} <= keys.keys():
        return (
            f"is an annotation of LISA, not rows: python dataset/build_grounding.py --split {path.parent} "
            "--output rows.jsonl makes rows of its folder"
        )
    return ""
