"""Tasks that come and go while the agent runs."""

import asyncio
from collections.abc import Callable, Coroutine
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


class Anew:
    """A loop that others may have begun anew, while whoever runs it notices nothing of it."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`work` goes on for ever, and may be cancelled and called again at any time."""
        self._work = self._next = work
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Have it done, for ever. Raises what it raises."""
        whose = asyncio.current_task()
        assert whose
        while True:
            work, self._next = self._next, self._work
            self._task = asyncio.create_task(work())
            try:
                await self._task
            except asyncio.CancelledError:
                if whose.cancelling():  # else it is to begin anew
                    raise

    async def restart(self) -> None:
        """Cancel it, and have it begin anew; returns once it is over."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    def hang(self, seconds: float) -> None:
        """Cancel it, and have it do nothing for so long, or until a restart; for tests of the
        watch."""
        self._next = lambda: asyncio.sleep(seconds)
        if self._task:
            self._task.cancel()


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


def moved(deadline: asyncio.Timeout, when: float | None) -> None:
    """Have a deadline later, or none. Raises TimeoutError where it is over: after a standstill its
    time may have run out before the step that went on was seen."""
    try:
        deadline.reschedule(when)
    except RuntimeError as error:
        raise TimeoutError from error
