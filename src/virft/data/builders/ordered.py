"""Mapping over several processes, in order, with few results waiting."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from virft.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(work: Callable[[T], R], items: Iterable[T], processes: int) -> Iterator[R]:
    """``work(item)`` for every item, in the order of the items.

    At most two results per process wait, so memory does not grow with the number of items (the standard
    executors' ``map`` submits everything at once). An exception of ``work`` is raised here, and what was
    not begun is given up.

    Args:
        work: a function that can be pickled.
        items: what to work on.
        processes: 1 works here, without another process.

    Raises:
        UserError: ``processes`` is less than 1.
    """
    if processes < 1:
        raise UserError(f"--processes {processes} must be at least 1")
    if processes == 1:
        yield from map(work, items)
        return
    # spawn: a forked child would share the parent's open SQLite file, which SQLite forbids.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as executor:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(executor.submit(work, item))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
