"""Several training sets as one, each with its share of the rows: ``a.jsonl:0.7 b:0.3``, or a YAML file.

A YAML file lists the sets::

    - name: data/coco_8x4.jsonl     # as --dataset_name takes it; relative to the YAML file where it is a path
      share: 0.7                    # of the mixed rows; all sets have one, or none
      task: detection               # of rows without a column task
      split: train
      image_folder: images          # relative to the YAML file as well

Without shares all rows of all sets are taken. With shares no row is repeated: the mixture is the largest in
which every set has its share, so the set that is scarcest for its share is used up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virft.data.records import read_yaml
from virft.errors import UserError

if TYPE_CHECKING:
    import datasets

YAML_SUFFIXES = (".yaml", ".yml")
YAML_KEYS = ("name", "share", "task", "split", "image_folder")


@dataclass(frozen=True)
class Part:
    """One set of a mixture.

    Attributes:
        name: as :func:`virft.data.training.load_rows` takes it.
        share: of the mixed rows; None where no part has one.
        task: of rows that do not say it in a column ``task``.
        split, image_folder: as load_rows takes them; None: those of the mixture.
    """

    name: str
    share: float | None = None
    task: str | None = None
    split: str | None = None
    image_folder: str | None = None


def parts_of(names: Sequence[str]) -> list[Part]:
    """The parts that ``--dataset_name`` names: ``NAME``, ``NAME:SHARE``, or one YAML file.

    Raises:
        UserError: nothing named, a set named twice, a share that is no positive number, only some with a
            share, or a faulty YAML file.
    """
    if not names:
        raise UserError("--dataset_name is missing; give a file, a folder or a Hub id")
    if len(names) == 1 and names[0].endswith(YAML_SUFFIXES):
        parts = _from_yaml(Path(names[0]))
    else:
        parts = [Part(name, share) for name, share in map(_parted, names)]
    for part in parts:
        if part.share is not None and not (math.isfinite(part.share) and part.share > 0):
            raise UserError(f"{part.name}: its share must be a positive number, got {part.share}")
    without = [part.name for part in parts if part.share is None]
    if without and len(without) < len(parts):
        raise UserError(f"{without[0]} has no share but other sets have: write {without[0]}:SHARE, or none")
    twice = [(part.name, part.split) for part in parts]
    if doubled := [name for name, split in twice if twice.count((name, split)) > 1]:
        raise UserError(
            f"{doubled[0]} is named twice: its rows would be repeated; name it once, with one share"
        )
    return parts


def _parted(name: str) -> tuple[str, float | None]:
    """Name and share; the last colon counts, and only before a number, so Windows drives and URLs stay
    whole."""
    stem, colon, share = name.rpartition(":")
    if not colon or not stem:
        return name, None
    try:
        return stem, float(share)
    except ValueError:
        return name, None


def _from_yaml(path: Path) -> list[Part]:
    content = read_yaml(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: must be a list of sets, each with a name")
    return [_yaml_part(path, number, entry) for number, entry in enumerate(content)]


def _yaml_part(path: Path, number: int, entry: Any) -> Part:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise UserError(f"{path}: entry {number} must have a name")
    if unknown := [key for key in entry if key not in YAML_KEYS]:
        raise UserError(f"{path}: entry {number}: unknown key {unknown[0]!r}; known: {', '.join(YAML_KEYS)}")
    share = entry.get("share")
    if share is not None and (isinstance(share, bool) or not isinstance(share, int | float)):
        raise UserError(f"{path}: entry {number}: share must be a number, got {share!r}")
    for key in ("task", "split", "image_folder"):
        if not isinstance(entry.get(key, ""), str):
            raise UserError(f"{path}: entry {number}: {key} must be text, got {entry[key]!r}")
    found = {key: path.parent / entry[key] for key in ("name", "image_folder") if entry.get(key)}
    return Part(**entry | {key: str(beside) for key, beside in found.items() if beside.exists()})


def load_mixture(
    names: Sequence[str],
    load: Callable[[str, str, str | Path | None], datasets.Dataset],
    split: str = "train",
    image_folder: str | Path | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """The rows of all parts, mixed in an order that the seed decides; a single plain set stays as it is.

    Args:
        names: see :func:`parts_of`.
        load: :func:`virft.data.training.load_rows`.
        split, image_folder: of parts that do not say their own.
        seed: of the order and of which rows are taken.

    Returns:
        A data set with the columns of all parts, None where a part lacks one.

    Raises:
        UserError: see :func:`parts_of` and :func:`virft.data.training.load_rows`; two parts hold different
            kinds of values in one column.
    """
    parts = parts_of(names)
    sets = [
        _with_task(load(part.name, part.split or split, part.image_folder or image_folder), part)
        for part in parts
    ]
    if len(sets) == 1 and parts[0].share is None:
        return sets[0]
    taken = _taken([len(rows) for rows in sets], parts)
    chosen = [rows.shuffle(seed=seed).select(range(count)) for rows, count in zip(sets, taken, strict=True)]
    return _joined(chosen, parts).shuffle(seed=seed)


def _taken(sizes: Sequence[int], parts: Sequence[Part]) -> list[int]:
    """How many rows of each part are taken."""
    shares = [part.share for part in parts]
    if None in shares:
        return list(sizes)
    whole = sum(shares)
    total = min(size * whole / share for size, share in zip(sizes, shares, strict=True))
    taken = [min(size, round(total * share / whole)) for size, share in zip(sizes, shares, strict=True)]
    for part, count in zip(parts, taken, strict=True):
        if not count:
            raise UserError(
                f"{part.name}: its share of {round(total)} mixed rows is none; raise it, or leave it out"
            )
    return taken


def _with_task(rows: datasets.Dataset, part: Part) -> datasets.Dataset:
    if part.task is None:
        return rows
    tasks = [part.task] * len(rows)
    if "task" in rows.column_names:
        tasks = [own or part.task for own in rows["task"]]
        rows = rows.remove_columns("task")
    return rows.add_column("task", tasks)


def _joined(sets: Sequence[datasets.Dataset], parts: Sequence[Part]) -> datasets.Dataset:
    from datasets import concatenate_datasets

    kinds: dict[str, tuple[Any, str]] = {}
    for rows, part in zip(sets, parts, strict=True):
        for column, feature in rows.features.items():
            first, name = kinds.setdefault(column, (feature, part.name))
            if first != feature and "null" not in (str(first.dtype), str(feature.dtype)):
                raise UserError(
                    f"column {column!r} is {first} in {name} but {feature} in {part.name}: rename one of them"
                )
    return concatenate_datasets(list(sets))
