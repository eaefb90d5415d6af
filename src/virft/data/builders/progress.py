"""Progress of a build, shown by whoever runs it."""

from __future__ import annotations

from collections.abc import Callable

Stage = Callable[[str, int | None], Callable[[int], None]]
"""Makes a progress bar: its name and total (None: unknown) -> a function that advances it."""


def silent(name: str, total: int | None) -> Callable[[int], None]:
    """No progress bar."""
    return lambda done: None


def bars(name: str, total: int | None) -> Callable[[int], None]:
    """A bar on stderr where that is a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit="", unit_scale=True, disable=None).update
