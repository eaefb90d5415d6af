"""Where training rows come from: a Hub id, a ``save_to_disk`` folder, parquet, .json or .jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virft.errors import UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

FILE_SUFFIXES = (".json", ".jsonl", ".parquet")


def read_table(name: str, split: str = "train") -> tuple[pa.Table, datasets.Features | None, Path | None]:
    """Read a data set without decoding an image.

    Args:
        name: path of a .json, .jsonl or .parquet file, of a folder of parquet files or one written by
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
        case ".json" | ".jsonl":
            return _table(list(_records(path)), path), None
    raise UserError(f"{path}: cannot read this kind of file; give one of {', '.join(FILE_SUFFIXES)}")


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON list, or of one JSON document a line, whichever the file holds."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        if text.lstrip().startswith("["):
            rows = list(enumerate(json.loads(text)))
        else:
            lines = enumerate(line for line in text.splitlines() if line.strip())
            rows = [(number, json.loads(line)) for number, line in lines]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error}); write a list of objects, or one a line") from None
    for number, row in rows:
        if not isinstance(row, Mapping):
            raise UserError(f"{path}: row {number} is {type(row).__name__}, not an object of columns")
        yield row


def _table(rows: list[Mapping[str, Any]], path: Path) -> pa.Table:
    import pyarrow as pa

    names = dict.fromkeys(key for row in rows for key in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            kinds = [
                (number, type(value).__name__) for number, value in enumerate(values) if value is not None
            ]
            odd = next((pair for pair in kinds if pair[1] != kinds[0][1]), kinds[0])
            raise UserError(
                f"{path}: column {name!r} mixes kinds of values: row {kinds[0][0]} holds {kinds[0][1]}, "
                f"row {odd[0]} holds {odd[1]}; give every row the same kind"
            ) from None
    return pa.table(columns)


def _read_folder(path: Path, split: str) -> datasets.Dataset:
    from datasets import DatasetDict, load_from_disk

    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        loaded = load_from_disk(str(path))
        if isinstance(loaded, DatasetDict):
            if split not in loaded:
                raise UserError(
                    f"{path}: no split {split!r}; it has {', '.join(loaded)}: pass --dataset_train_split"
                )
            return loaded[split]
        return loaded
    files = sorted(path.glob("*.parquet")) or sorted(path.glob(f"**/{split}*.parquet"))
    if not files:
        raise UserError(f"{path}: neither a folder written by save_to_disk nor one with .parquet files in it")
    return _read_parquet(files)


def _read_parquet(files: list[Path]) -> datasets.Dataset:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except DatasetGenerationError as error:
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
