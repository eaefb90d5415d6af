"""Rows of a batch that share a prompt: repeated, cut into micro-batches, told apart where they should be the
same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from virft.shared_prefix_vision import RowImages


def no_none(images: list | None, times: int = 1) -> list | None:
    """Images by row, [] for rows without: TRL calls the processor once more, and it refuses TRL's None."""
    return None if images is None else repeat([row or [] for row in images], times)


def repeat(rows: Sequence[Any], times: int) -> list[Any]:
    """Each row ``times`` times in a row."""
    return [row for row in rows for _ in range(times)]


def differs(what: str, row: int, other: int, unit: int) -> str:
    """What to say where rows of a unit, which share a prompt, do not."""
    return (
        f"shared prefix: rows {other} and {row} of a device's batch should show the same {what} ({unit} rows "
        "in a row do, by TRL's sampler); a sampler or data set that breaks this needs --shared_prefix false"
    )


def check_units(prompt_ids: torch.Tensor, unit: int) -> None:
    """Refuse prompts (rows, P) that are not the same within each unit of neighbouring rows.

    Raises:
        RuntimeError: naming two rows that differ; or the rows are no multiple of a unit.
    """
    if len(prompt_ids) % unit:
        raise RuntimeError(f"shared prefix: a batch of {len(prompt_ids)} rows is no multiple of {unit}")
    units = prompt_ids.view(-1, unit, prompt_ids.shape[1])
    differing = (units != units[:, :1]).any(2).nonzero()
    if len(differing):
        which, place = differing[0].tolist()
        raise RuntimeError(differs("prompt", which * unit + place, which * unit, unit))


def micro_batches(batch: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Cut a generation batch into ``count`` micro-batches of neighbouring rows, in random order.

    TRL shuffles rows. Whole micro-batches move here, which keeps groups together and scores a row in the
    policy pass in the very forward of the old and reference passes. The random numbers drawn are TRL's.
    """
    rows = len(batch["prompt_ids"])
    permutation = torch.randperm(rows)
    size = rows // count
    order = dict.fromkeys((permutation // size).tolist())
    return [
        {key: _take(value, range(i * size, (i + 1) * size)) for key, value in batch.items()} for i in order
    ]


def _take(value: Any, rows: range) -> Any:
    if isinstance(value, RowImages):
        return vars(value.take(rows))  # plain containers: the buffer is saved with a checkpoint
    if value is None or (isinstance(value, torch.Tensor) and value.ndim == 0):
        return value
    return value[rows.start : rows.stop]
