"""Several things at once, as most of the time with a bucket is waiting for its answers; what comes of them stays in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_order(pool: ThreadPoolExecutor, function: Callable[[Item], Found], items: Iterable[Item], ahead: int = 16) -> Iterator[Found]:
    """function(item) of each item, in their order. What it raises is raised at its turn; no more than `ahead` are begun before it."""
    waiting: deque[Future[Found]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
