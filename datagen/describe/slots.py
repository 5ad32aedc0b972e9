"""How many requests an engine has at a time."""

from __future__ import annotations

import asyncio


class Slots:
    """A semaphore that gives out several slots at once, first come, first served.

    Whoever waits for many is not overtaken by those who want few, and two who each hold half cannot block one another.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = asyncio.Semaphore(size)
        self._turn = asyncio.Lock()

    async def acquire(self, count: int) -> None:
        """Wait until `count` slots are free and take them. Raises ValueError for more than there are."""
        if count > self.size:
            raise ValueError(f"{count} slots asked for, {self.size} exist")
        taken = 0
        async with self._turn:
            try:
                while taken < count:
                    await self._free.acquire()
                    taken += 1
            except BaseException:
                self.release(taken)
                raise

    def release(self, count: int = 1) -> None:
        """Give slots back."""
        for _ in range(count):
            self._free.release()
