"""Mapping over several processes, in order, with few results waiting."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
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
        UserError: ``processes`` is less than 1, or one of them was ended from outside.
    """
    if processes < 1:
        raise UserError(f"--processes {processes} must be at least 1")
    if processes == 1:
        yield from map(work, items)
        return
    # spawn: a forked child would share the parent's open SQLite file, which SQLite forbids.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as executor:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                with _interrupts_wait():
                    waiting.append(executor.submit(work, item))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                f"one of {processes} worker processes was ended from outside, as a machine without free "
                "memory does: pass a smaller --processes"
            ) from None
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when its parent is gone: one that was killed cannot tell its workers to end, and they
    would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Processes started in here never see Ctrl-C, which a terminal sends to all: their parent ends them.

    A blocked signal is inherited from the first instant on; what is sent to this process meanwhile is
    delivered afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
