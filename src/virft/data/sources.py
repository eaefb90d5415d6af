"""Where training rows come from: a Hub id, a ``save_to_disk`` folder, parquet, .json, .jsonl or .csv."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virft.data.records import RECORD_SUFFIXES, records
from virft.errors import UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

FILE_SUFFIXES = (*RECORD_SUFFIXES, ".parquet")
CHUNK = 10_000
"""Rows of a text file that are objects at once."""


def read_table(name: str, split: str = "train") -> tuple[pa.Table, datasets.Features | None, Path | None]:
    """Read a data set without decoding an image.

    Args:
        name: path of a .json, .jsonl, .csv or .parquet file, of a folder of parquet files or one written by
            ``save_to_disk``, or a Hub id ("owner/name").
        split: for sources that have splits.

    Returns:
        The table, the features where the source has them, and the folder that relative image paths start from
        (None for a Hub data set).

    Raises:
        UserError: nothing there, another kind of file, no such split, or a file that cannot be read.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return (*_from_dataset(_read_folder(path, split)), path)
    if path.suffix.lower() in FILE_SUFFIXES or path.exists():
        if not path.is_file():
            raise UserError(f"{name}: no such file; give a path that exists or a Hub id such as owner/name")
        return *_read_file(path), path.parent
    return (*_from_dataset(_read_hub(name, split)), None)


def _read_file(path: Path) -> tuple[pa.Table, datasets.Features | None]:
    match path.suffix.lower():
        case ".parquet":
            return _from_dataset(_read_parquet([path]))
        case suffix if suffix in RECORD_SUFFIXES:
            return table_of(records(path), str(path)), None
    raise UserError(f"{path}: cannot read this kind of file; give one of {', '.join(FILE_SUFFIXES)}")


def table_of(rows: Iterator[Mapping[str, Any]], name: str) -> pa.Table:
    """Rows as a table; columns that a row lacks hold null. Few rows are held as objects at once.

    Raises:
        UserError: a column holds several kinds of values; names it and two rows.
    """
    import pyarrow as pa

    chunks, start = [], 0
    while batch := list(itertools.islice(rows, CHUNK)):
        names = dict.fromkeys(key for row in batch for key in row)
        columns = {key: _column([row.get(key) for row in batch], key, name, start) for key in names}
        chunks.append(pa.table(columns))
        start += len(batch)
    if not chunks:
        return pa.table({})
    names = dict.fromkeys(key for chunk in chunks for key in chunk.column_names)
    return pa.table({key: _joined(chunks, key, name) for key in names})


def _joined(chunks: list[pa.Table], key: str, name: str) -> pa.ChunkedArray:
    """A column of several tables as one; a table that lacks it has nulls."""
    import pyarrow as pa

    parts = [chunk.column(key) if key in chunk.column_names else None for chunk in chunks]
    kinds = {part.type for part in parts if part is not None and not pa.types.is_null(part.type)}
    if len(kinds) > 1:
        values = [
            value
            for chunk, part in zip(chunks, parts, strict=True)
            for value in (part.to_pylist() if part is not None else [None] * chunk.num_rows)
        ]
        return pa.chunked_array([_column(values, key, name)])
    kind = kinds.pop() if kinds else pa.null()
    return pa.chunked_array(
        [
            array
            for chunk, part in zip(chunks, parts, strict=True)
            for array in (part.cast(kind).chunks if part is not None else [pa.nulls(chunk.num_rows, kind)])
        ],
        kind,
    )


def _column(values: list[Any], key: str, name: str, start: int = 0) -> pa.Array:
    """Values of rows ``start`` and following as a column."""
    import pyarrow as pa

    try:
        key.encode()
        return pa.array(values)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name}: column {key!r} holds {error.object[error.start]!r}, half of a character: mend the text"
        ) from None
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        kinds = [(start + n, type(value).__name__) for n, value in enumerate(values) if value is not None]
        odd = next((pair for pair in kinds if pair[1] != kinds[0][1]), None)
        if odd is None:  # inside lists or objects, or a number of more than 64 bits
            why = str(error).splitlines()[0].rstrip(".")
            raise UserError(
                f"{name}: column {key!r} cannot be made of rows {kinds[0][0]} to {kinds[-1][0]}: {why}; give "
                "every row the same kind of values"
            ) from None
        raise UserError(
            f"{name}: column {key!r} mixes kinds of values: row {kinds[0][0]} holds {kinds[0][1]}, "
            f"row {odd[0]} holds {odd[1]}; give every row the same kind"
        ) from None


def _read_folder(path: Path, split: str) -> datasets.Dataset:
    from datasets import DatasetDict, load_from_disk

    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        try:
            loaded = load_from_disk(str(path))
        except (OSError, ValueError, KeyError, TypeError) as error:  # whichever of its files is damaged
            why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(
                f"{path}: a save_to_disk folder that is not whole ({why}): copy or build it again"
            ) from None
        if isinstance(loaded, DatasetDict):
            if split not in loaded:
                raise UserError(f"{path}: no split {split!r}; it has {', '.join(loaded)}: name one of them")
            return loaded[split]
        return loaded
    files = sorted(path.glob("*.parquet")) or sorted(path.glob(f"**/{split}*.parquet"))
    if not files:
        if any(path.glob("*.json")):
            raise UserError(
                f"{path}: a folder of .json files: name one of them; a split of LISA becomes rows by "
                f"python dataset/build_grounding.py --split {path} --output rows.jsonl"
            )
        raise UserError(f"{path}: neither a folder written by save_to_disk nor one with .parquet files in it")
    return _read_parquet(files)


def _read_parquet(files: list[Path]) -> datasets.Dataset:
    import pyarrow as pa
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except (DatasetGenerationError, pa.ArrowInvalid) as error:
        raise UserError(f"{files[0]}: not a readable parquet file ({error.__cause__ or error})") from None


def _read_hub(name: str, split: str) -> datasets.Dataset:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(name, split=split)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{name}: no such file or folder here, and not loadable from the Hub ({first})"
        ) from None
    except ValueError as error:  # the library's word for a split or configuration that is not there
        raise UserError(f"{name}: {str(error).splitlines()[0]}; pass --dataset_train_split") from None


def _from_dataset(dataset: datasets.Dataset) -> tuple[pa.Table, datasets.Features]:
    # The Arrow view keeps the memory-mapped files: a data set of gigabytes of images costs no memory.
    import pyarrow as pa

    table = dataset.with_format("arrow")[:] if len(dataset) else dataset.data.table
    return pa.table(table), dataset.features
