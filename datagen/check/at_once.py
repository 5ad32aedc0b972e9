"""Several parts at once, as most of the time of a check in a bucket is waiting for its answers; what is found stays in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

PARTS_AT_ONCE = 8

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_order(pool: ThreadPoolExecutor, function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """function(item) of each item, in their order. What it raises is raised at its turn; no more than a few are done ahead of it."""
    waiting: deque[Future[Found]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * PARTS_AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
