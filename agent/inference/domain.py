"""A domain: one child process, started, watched, killed and started again.

Limits  : one call at a time, `call_timeout_s` for each; a child that exceeds it is killed. Restarts
          wait from `restart_s_min`, doubling up to `restart_s_max`, until a call succeeds.
Recovery: a call that the child's death cut off raises DomainError; the child remembers nothing
          from call to call, so its caller brings the same call again.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Self, TypeVar

import msgspec
from msgspec import Struct

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.errors import DomainError
from agent.inference import wire
from agent.inference.catalog import Model

log = logging.getLogger("domain")
T = TypeVar("T")
STOP_TIMEOUT_S = 2.0
LAST_WORDS_S = 1.0  # of a worker that has closed its socket


class CallLost(DomainError):
    """The child died of, or during, this call."""


class Child:
    """One life of the worker process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.reader = reader
        self.writer = writer

    async def call(self, head: Struct, body: list[bytes], timeout_s: float) -> tuple[bytes, bytes]:
        """Send one message, return the answer. Raises ConnectionError, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            self.writer.writelines(wire.pack(head, *body))
            await self.writer.drain()
            return await self.read()

    async def read(self) -> tuple[bytes, bytes]:
        """The next message's head, still encoded, and body. Raises ConnectionError."""
        try:
            head, body = wire.lengths(await self.reader.readexactly(wire.PREFIX_BYTES))
            return await self.reader.readexactly(head), await self.reader.readexactly(body)
        except asyncio.IncompleteReadError as error:
            raise wire.Closed("the worker is gone") from error

    async def end(self) -> None:
        """Close the socket, which ends a healthy worker; kill one that does not follow."""
        self.writer.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.process.wait()
        except TimeoutError:
            self.kill()
            await self.process.wait()

    def kill(self) -> None:
        """End the process now, whatever it does."""
        if self.process.returncode is None:
            self.process.kill()


class Domain:
    """The running domain; an async context manager. `run` keeps the child alive."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        model: Model,
        clock: Clock,
        changed: Callable[["Domain"], None],
    ) -> None:
        """`changed` is called when the domain becomes ready or is lost."""
        self.name = name
        self.model = model
        self.ep = ""
        self.memory_size = 0  # of a stream, in float32 values; known once the domain was ready
        self.restarts = 0
        self.cause = "starting"  # why it is not ready
        self._blame = ""  # why we killed the child ourselves
        self.ready = asyncio.Event()
        self._settings = settings
        self._clock = clock
        self._changed = changed
        self._child: Child | None = None
        self._turn = asyncio.Lock()
        self._backoff_s = settings.restart_s_min

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._child:
            await self._child.end()

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        return self._child.process.pid if self._child else None

    async def run(self) -> None:
        """Start the child; whenever it ends, start the next one."""
        while True:
            try:
                self._child = child = await self._spawn()
                self._hello(*await self._first_message(child))
                await child.process.wait()
                self._lost(f"ended with {_named(child.process.returncode)}")
            except (DomainError, wire.Closed, TimeoutError, OSError) as error:
                if self._child:
                    self._child.kill()
                    await self._child.process.wait()
                self._lost(str(error) or f"no answer within {self._settings.start_timeout_s} s")
            if self._child:
                self._child.writer.close()
            self._child = None
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(self._backoff_s * 2, self._settings.restart_s_max)
            self.restarts += 1

    async def call(self, head: Struct, body: list[bytes], answer: type[T]) -> tuple[T, bytes]:
        """Have the worker do one thing; a child that hangs is killed.

        Raises CallLost when the child did not survive the call, DomainError when there was none.
        """
        async with self._turn:
            child = self._child
            if child is None or not self.ready.is_set():
                raise DomainError(f"domain {self.name} is not ready: {self.cause}")
            try:
                reply, payload = await child.call(head, body, self._settings.call_timeout_s)
            except ConnectionError as error:
                await self._gone(child)
                raise CallLost(f"domain {self.name} was lost during a call") from error
            except TimeoutError as error:
                self._blame = f"no answer within {self._settings.call_timeout_s} s"
                self._end(child)
                raise CallLost(f"domain {self.name}: {self._blame}; killed") from error
            except asyncio.CancelledError:
                self._end(child)  # its answer would be taken for the next call's
                raise
            try:
                decoded = msgspec.msgpack.decode(reply, type=answer)
            except msgspec.DecodeError:
                self._blame = _failure(reply)
                await self._gone(child)
                raise CallLost(f"domain {self.name}: {self._blame}") from None
            self._backoff_s = self._settings.restart_s_min
        return decoded, payload

    def restart(self) -> None:
        """Kill the child; `run` starts the next one."""
        if self._child:
            self._blame = "restart was asked for"
            self._end(self._child)

    async def _gone(self, child: Child) -> None:
        """Its socket is closed: let it end by itself, so that its own status is told."""
        self.ready.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await child.process.wait()
        child.kill()

    def _end(self, child: Child) -> None:
        self.ready.clear()  # at once, so that nobody calls it before `run` has seen it end
        child.kill()

    async def _spawn(self) -> Child:
        ours, theirs = socket.socketpair()
        process: asyncio.subprocess.Process | None = None
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "agent.inference.worker"),
                    str(theirs.fileno()),
                    *(str(os.getpid()), self.model.manifest.engine),
                    msgspec.json.encode(self.model.options).decode(),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                )
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except (OSError, asyncio.CancelledError):
            ours.close()
            if process:
                process.kill()
                await process.wait()
            raise
        return Child(process, reader, writer)

    async def _first_message(self, child: Child) -> tuple[bytes, bytes]:
        async with asyncio.timeout(self._settings.start_timeout_s):
            return await child.read()

    def _hello(self, head: bytes, _: bytes) -> None:
        try:
            hello = msgspec.msgpack.decode(head, type=wire.Hello)
        except msgspec.DecodeError:
            raise DomainError(_failure(head)) from None
        self.ep, self.memory_size, self.cause = hello.ep, hello.memory_size, ""
        self._blame = ""
        self.ready.set()
        log.info(
            "domain %s ready: %s on %s, loaded in %.2f s, pid %s",
            *(self.name, self.model.label, self.ep, hello.load_s, self.pid),
        )
        self._changed(self)

    def _lost(self, cause: str) -> None:
        self.ready.clear()
        self.cause, self._blame = self._blame or cause, ""
        log.warning(
            "domain %s lost: %s; next try in %.1f s", self.name, self.cause, self._backoff_s
        )
        self._changed(self)


def _failure(head: bytes) -> str:
    """What a worker says of its own end."""
    try:
        return msgspec.msgpack.decode(head, type=wire.Failure).message
    except msgspec.DecodeError as error:
        return f"the worker's answer makes no sense: {error}"


def _named(status: int | None) -> str:
    if status is not None and status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"
