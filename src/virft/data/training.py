"""Rows for training: loaded from anywhere, checked with row numbers, images kept undecoded.

A row has ``problem`` (the user's words), ``solution`` (the truth, in the form of a reply's answer) and
``images`` (none, one or several). A set without ``problem`` gets the task's own prompt about its column
``category`` (detection), ``instruction`` (grounding) or ``subject`` (classification). Every other column is
kept and reaches the rewards. Columns with a meaning of their own: ``task`` routes a row to its rewards,
``completion`` or ``thinking`` are what SFT learns, ``context`` is the earlier part of a teacher-forced trace
and follows the problem, ``system`` is the row's own system message, ``coordinates`` names the space of a
row's boxes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from virft import prompts
from virft.data.coordinates import convert_rows
from virft.data.formats import IMAGE_COLUMNS, table_of_rows, told_apart
from virft.data.lengths import drop_long
from virft.data.mixture import load_mixture
from virft.data.row_images import image_lists, image_sizes
from virft.data.sources import read_table
from virft.errors import UserError, named

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

logger = logging.getLogger(__name__)

MISNAMED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "problem": ("problems", "question", "prompt", "query", "text"),
        "solution": ("solutions", "answer", "answers", "label", "ground_truth", "gt"),
        "image": ("img", "imgs", "picture", "image_paths", "image_file", "file_name", "path"),
    }
)
"""Column -> names that people give it; used for hints only, never read."""

OPTIONAL_TEXTS = ("system", "task", "context", "completion", "thinking", "coordinates")
"""Columns with a meaning of their own, of which a row may hold nothing."""

ASKS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "category": prompts.detection,
        "instruction": prompts.grounding,
        "subject": lambda subject: prompts.classification(*prompts.SUBJECTS[subject]),
    }
)
"""Column -> the task's own prompt about it, for rows without ``problem``."""


def load_rows(name: str, split: str = "train", image_folder: str | Path | None = None) -> datasets.Dataset:
    """Load and check training rows; no image is decoded, but every image's header is read.

    Records of another training format (:mod:`virft.data.formats`) become rows, with a line in the log that
    names the format, which is the data set's ``info.description`` too.

    Args:
        name: a path or a Hub id, see :func:`virft.data.sources.read_table`.
        split: for sources that have splits.
        image_folder: where relative image paths start; by default beside the file that names them.

    Returns:
        A data set with ``problem`` and ``solution`` (str), ``images`` (list of undecoded images: dictionaries
        of ``bytes`` and ``path``), ``image_sizes`` (list of [width, height] in pixels) and the other columns.

    Raises:
        UserError: missing file, empty set, wrong column, missing text, or an unreadable image, with the row's
            number (counted from 0).
    """
    from datasets import Dataset, DatasetInfo, Features, List, Value
    from datasets import Image as ImageFeature
    from datasets.table import InMemoryTable

    table, features, folder = read_table(name, split)
    if table.num_rows == 0:
        raise UserError(f"{name}: the data set is empty")
    read_as = told_apart(table.column_names)
    if read_as:
        table, features = table_of_rows(table, name)[0], None
        logger.warning("%s: %s", name, read_as)
    table = _ask(table, name)
    _check_words(table, name)
    image_column = next((c for c in IMAGE_COLUMNS if c in table.column_names), None)
    start = Path(image_folder).expanduser() if image_folder is not None else folder
    if image_folder is not None and not start.is_dir():
        raise UserError(f"--image_folder {image_folder}: no such folder")
    images = image_lists(table, image_column, start, name)
    kept = [c for c in table.column_names if c not in (*IMAGE_COLUMNS, "image_sizes")]
    schema = (
        Features({c: features[c] for c in kept})
        if features is not None
        else Features.from_arrow_schema(table.select(kept).schema)
    )
    schema["images"] = List(ImageFeature(decode=False))
    schema["image_sizes"] = List(List(Value("int32")))
    rows = table.select(kept).append_column("images", images)
    rows = rows.append_column("image_sizes", image_sizes(images, name))
    return Dataset(InMemoryTable(rows), info=DatasetInfo(features=schema, description=read_as))


def to_prompts(rows: datasets.Dataset, system: str | None = None) -> datasets.Dataset:
    """Add ``prompt``, the conversation of a row in TRL's form; TRL puts the images before the user's text.

    Args:
        rows: from :func:`load_rows`.
        system: the system message of rows that have none of their own in a column ``system``; None for none.
    """
    from datasets import List, Value

    nothing = [None] * len(rows)
    contexts = rows["context"] if "context" in rows.column_names else nothing
    systems = rows["system"] if "system" in rows.column_names else nothing
    conversations = []
    for problem, context, own in zip(rows["problem"], contexts, systems, strict=True):
        opening = [{"role": "system", "content": own or system}] if own or system else []
        asked = f"{problem}\n{context}" if context else problem
        conversations.append([*opening, {"role": "user", "content": asked}])
    if "prompt" in rows.column_names:
        rows = rows.remove_columns("prompt")
    return rows.add_column(
        "prompt", conversations, feature=List({"role": Value("string"), "content": Value("string")})
    )


def target_text(row: Mapping[str, Any]) -> str:
    """The reply that SFT teaches and that injection puts into a group.

    It is the column ``completion`` where the row has one, else the solution behind a think block that holds
    the column ``thinking``, or nothing: the prompts ask for both blocks.
    """
    if row.get("completion"):
        return row["completion"]
    return f"<think>{row.get('thinking') or ''}</think>{row['solution']}"


def prepared_rows(
    name: str | Sequence[str] | None, split: str, image_folder: str | None, settings: Any, processor: Any
) -> datasets.Dataset:
    """Rows as trainers take them: checked, in the model's coordinate space, with prompts, none too long.

    Args:
        name: as for :func:`load_rows`, or several, see :func:`virft.data.mixture.load_mixture`.
        split, image_folder: as for :func:`load_rows`.
        settings: with ``coordinates`` (a space), ``min_pixels``, ``max_pixels``, ``system_prompt``,
            ``max_prompt_length`` (or None) and ``skip_long_prompts``; of several sets mixed, ``seed``.
        processor: the model's.

    Raises:
        UserError: see :func:`load_rows`, :func:`virft.data.coordinates.convert_rows` and
            :func:`virft.data.lengths.drop_long`.
    """
    names = [name] if isinstance(name, str) else list(name or ())
    rows = load_mixture(names, load_rows, split, image_folder, getattr(settings, "seed", 0))
    rows = convert_rows(rows, settings.coordinates, settings.min_pixels, settings.max_pixels)
    rows = to_prompts(rows, settings.system_prompt or None)
    if settings.max_prompt_length is None:
        return rows
    rows, dropped = drop_long(rows, processor, settings.max_prompt_length, settings.skip_long_prompts)
    if dropped:
        logger.warning("%s: %d rows above --max_prompt_length were left out", " ".join(names), dropped)
    return rows


def rows_and_held_out(
    source: Any, settings: Any, processor: Any
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The rows to train on and, where training evaluates, held-out ones.

    Args:
        source: with ``dataset_name``, ``dataset_train_split``, ``eval_dataset_name`` (None: the first name's
            ``dataset_test_split``) and ``image_folder``.
        settings: as for :func:`prepared_rows`, with ``eval_strategy``.
        processor: the model's.

    Raises:
        UserError: see :func:`prepared_rows`.
    """
    folder = source.image_folder
    rows = prepared_rows(source.dataset_name, source.dataset_train_split, folder, settings, processor)
    if settings.eval_strategy == "no":
        return rows, None
    name = source.eval_dataset_name or source.dataset_name
    held_out = prepared_rows(name, source.dataset_test_split, folder, settings, processor)
    if source.eval_dataset_name is None and all(rows[c] == held_out[c] for c in ("problem", "solution")):
        raise UserError("--eval_strategy needs --eval_dataset_name: the training rows have no other split")
    return rows, held_out


def data_summary(rows: datasets.Dataset, name: str | Sequence[str], split: str) -> dict[str, Any]:
    """What a checkpoint's manifest says of the rows."""
    return {
        "name": name if isinstance(name, str) else " ".join(name),
        "split": split,
        "rows": len(rows),
        "hash": data_hash(rows),
    }


def data_hash(rows: datasets.Dataset) -> str:
    """Hex digest of the rows' words and image sizes: equal for equal data, wherever it lies."""
    digest = hashlib.sha256()
    for column in ("problem", "solution", "image_sizes", "system"):
        if column in rows.column_names:
            digest.update(repr(list(rows[column])).encode())
    return digest.hexdigest()[:16]


def _ask(table: pa.Table, name: str) -> pa.Table:
    """The table with ``problem``, made by :data:`ASKS` where it has none."""
    import pyarrow as pa

    column = next((c for c in ASKS if c in table.column_names), None)
    if "problem" in table.column_names or column is None:
        return table
    _check_text(table.column(column), column, name)
    words = table.column(column).to_pylist()
    unknown = [n for n, word in enumerate(words) if column == "subject" and word not in prompts.SUBJECTS]
    if unknown:
        raise UserError(
            f"{name}: {named(unknown)}: no prompt for the subject {words[unknown[0]]!r}; known: "
            f"{', '.join(prompts.SUBJECTS)}; else write the column 'problem'"
        )
    return table.append_column("problem", pa.array([ASKS[column](word) for word in words], pa.string()))


def _check_words(table: pa.Table, name: str) -> None:
    """Raise UserError where a column is missing, or a text that a row must have."""
    _check_columns(table.column_names, name)
    for column in ("problem", "solution"):
        _check_text(table.column(column), column, name)
    for column in OPTIONAL_TEXTS:
        if column in table.column_names:
            _check_text(table.column(column), column, name, optional=True)


def _check_columns(columns: Sequence[str], name: str) -> None:
    for wanted in ("problem", "solution"):
        if wanted not in columns:
            raise UserError(f"{name}: no column {wanted!r}; {_how_to_get(wanted, columns, name)}")
    present = [c for c in IMAGE_COLUMNS if c in columns]
    if len(present) > 1:
        raise UserError(f"{name}: columns {' and '.join(present)} both hold images; keep one of them")
    meant = next((c for c in MISNAMED["image"] if c in columns), None)
    if not present and meant:
        raise UserError(
            f"{name}: no column 'image'; rename {meant!r} to 'image' (or drop it for text-only rows)"
        )


def _how_to_get(wanted: str, columns: Sequence[str], name: str) -> str:
    found = {
        ours: next((c for c in MISNAMED[ours] if c in columns), None) for ours in ("problem", "solution")
    }
    meant = found[wanted]
    if meant is None:
        return f"its columns are {', '.join(columns)}"
    pairs = " ".join(f"{ours}={theirs}" for ours, theirs in found.items() if theirs and ours not in columns)
    command = f"python dataset/build_rows.py --source {name} --map {pairs} --output rows.jsonl"
    return f"rename {meant!r} to {wanted!r}; {command} does it"


def _check_text(values: pa.ChunkedArray, column: str, name: str, optional: bool = False) -> None:
    """Raise UserError where a value is no text or blank; null and "" pass where they are ``optional``."""
    bad: list[int] = []
    start, first = 0, None
    for chunk in values.chunks:
        for number, value in enumerate(chunk.to_pylist(), start=start):
            if optional and value in (None, ""):
                continue
            if not isinstance(value, str) or not value.strip():
                first = first if bad else value
                bad.append(number)
        start += len(chunk)
    if bad:
        raise UserError(f"{name}: {named(bad)}: {column!r} must be text, got {first!r}")
