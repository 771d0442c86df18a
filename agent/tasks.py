"""Tasks that come and go while the agent runs."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Crew:
    """Tasks under one roof: what one of them meets that nobody expected ends `run`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._fault: BaseException | None = None
        self._faulty = asyncio.Event()

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Have `work` done from now on; cancelling the task is no fault."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def run(self) -> None:
        """Wait for the first fault, and raise it."""
        await self._faulty.wait()
        assert self._fault is not None
        raise self._fault

    async def end(self) -> None:
        """Cancel all tasks; returns when they are over."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()):
            self._fault = self._fault or fault
            self._faulty.set()


async def through(work: Coroutine[Any, Any, T]) -> T:
    """Have `work` done to its end, however often the caller is cancelled meanwhile.

    Raises what it raises; then, if the caller was cancelled, CancelledError.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled:
        raise cancelled
    return result
