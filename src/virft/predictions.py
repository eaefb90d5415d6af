"""Reading predictions and their protocol from disk. Standard library only: scoring needs no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from virft.errors import UserError
from virft.types import Prediction

META_SUFFIX = ".meta.json"


def meta_path(predictions: str | Path) -> Path:
    """Where the protocol of a predictions file stands: ``x.jsonl`` -> ``x.meta.json`` beside it."""
    path = Path(predictions)
    return path.with_name(path.stem + META_SUFFIX)


def load_meta(predictions: str | Path) -> dict[str, Any] | None:
    """The protocol beside a predictions file, or None where there is none.

    Raises:
        UserError: a file that is no JSON object.
    """
    path = meta_path(predictions)
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(meta, dict):
        raise UserError(f"{path}: no JSON object, so it is not the protocol of a run")
    return meta


def load_predictions(path: str | Path) -> list[Prediction]:
    """Read a ``predictions.jsonl``.

    Raises:
        UserError: no such file, a line that is no prediction, or two lines with one id, with their numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"predictions {path}: no such file; make it with the inference program")
    predictions, lines = [], {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found = Prediction.from_json(json.loads(line.decode("utf-8")))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"predictions {path}, line {number}: not a prediction ({type(error).__name__}: {error}); "
                    "it needs the fields id, reply and space"
                ) from error
            if (first := lines.setdefault(found.id, number)) != number:
                raise UserError(
                    f"predictions {path}, line {number}: {found.id!r} is the id of line {first} as well; "
                    "keep one of them"
                )
            predictions.append(found)
    return predictions
