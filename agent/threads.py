"""Calls that block, each in a thread that the end of the agent does not wait for.

A name server, a TLS handshake or a file on a dying disk may take minutes. Threads of asyncio's own
pool are joined at the end of the loop; these are left behind.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def apart(call: Callable[[], T]) -> T:
    """What `call` returns or raises, once its thread is done with it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    threading.Thread(target=_run, args=(call, loop, done), daemon=True).start()
    try:
        return await done
    finally:
        del done  # its error would hold this frame, and all that the call had open


def _run(call: Callable[[], T], loop: asyncio.AbstractEventLoop, done: asyncio.Future[T]) -> None:
    try:
        tell, outcome = _give, call()
    except Exception as error:  # noqa: BLE001 - handed to the caller
        tell, outcome = _fail, error  # type: ignore[assignment]
    with contextlib.suppress(RuntimeError):  # the loop is over: nobody asks any more
        loop.call_soon_threadsafe(tell, done, outcome)
    del call, done, outcome  # as above


def _give(done: asyncio.Future[Any], outcome: Any) -> None:
    if not done.cancelled():
        done.set_result(outcome)


def _fail(done: asyncio.Future[Any], error: Any) -> None:
    if not done.cancelled():
        done.set_exception(error)
