"""One life of a worker process: how it begins, what is sent to it, what it says, how it ends."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import cast

from msgspec import Struct

from agent.inference import wire
from agent.inference.arena import Arena
from agent.inference.domains.zygote import Child, Zygote
from agent.tasks import through

STOP_TIMEOUT_S = 2.0
READ_BYTES = 1 << 16
SOCKET_BYTES = 1 << 20  # the kernel gives what it allows

Heard = Callable[[bytes, memoryview], None]
Ended = Callable[[str], None]


NOTHING_MORE: Mapping[str, str] = MappingProxyType({})


class Frames(asyncio.BufferedProtocol):
    """Takes messages apart; a body that is not whole yet is read to where it will stay."""

    def __init__(self, heard: Heard, ended: Ended) -> None:
        """`heard` gets each message's head and body, `ended` that there will be no more, and why.

        Nothing is wrong where that is empty.
        """
        self.transport: asyncio.Transport
        self._heard = heard
        self._ended = ended
        self._room = bytearray(READ_BYTES)
        self._held = 0  # bytes of `_room` that are not taken apart yet
        self._large: bytearray | None = None  # a message beyond `_room`, without its prefix
        self._filled = 0
        self._head_bytes = 0
        self._fault = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the way back."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell."""
        self._ended(self._fault)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes belong."""
        if self._large is not None:
            return memoryview(self._large)[self._filled :]
        return memoryview(self._room)[self._held :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take apart what is whole now."""
        if self._large is not None:
            self._filled += nbytes
            if self._filled == len(self._large):
                whole, self._large = memoryview(self._large), None
                self._heard(bytes(whole[: self._head_bytes]), whole[self._head_bytes :])
            return
        self._held += nbytes
        at = self._messages()
        if at:
            self._room[: self._held - at] = self._room[at : self._held]
            self._held -= at

    def _messages(self) -> int:
        """Hand on the whole messages; how many bytes they were."""
        at, room = 0, self._room
        while self._held - at >= wire.PREFIX_BYTES:
            try:
                head, body = wire.lengths(room[at : at + wire.PREFIX_BYTES])
            except wire.Closed as error:  # no worker of ours says so
                self._fault = str(error)
                self.transport.abort()
                return self._held
            begin, end = at + wire.PREFIX_BYTES, at + wire.PREFIX_BYTES + head + body
            if end <= self._held:
                split = begin + head
                self._heard(bytes(room[begin:split]), memoryview(bytes(room[split:end])))
                at = end
                continue
            if end - at > len(room):
                self._large = bytearray(head + body)
                self._head_bytes = head
                self._filled = self._held - begin
                self._large[: self._filled] = room[begin : self._held]
                return self._held
            break
        return at


class Process:
    """A worker process and the ways to it; `spawned` makes one."""

    def __init__(self, child: Child, frames: Frames, pipe: int, arena: Arena) -> None:
        self.pid = child.pid
        self.arena = arena
        self._child = child
        self._frames = frames
        self._pipe = pipe

    def send(self, head: Struct, body: Sequence[wire.Buffer] = ()) -> None:
        """Send one message; to a worker that has ended, nothing."""
        if not self._frames.transport.is_closing():
            self._frames.transport.writelines(wire.pack(head, body))

    def withdraw(self, call: int) -> None:
        """Nobody waits for this call any more; it may come to its end all the same."""
        if self._pipe < 0:
            return  # it has ended
        try:
            os.write(self._pipe, wire.WITHDRAWAL.pack(call))
        except (BlockingIOError, BrokenPipeError):
            return  # it is only to save work

    def kill(self) -> None:
        """End it now, whatever it does."""
        self._child.kill()

    def waited_s(self) -> float:
        """How long it has been ready to run, and had no processor; 0 where the kernel is silent."""
        return self._child.waited_s()

    async def ended(self) -> int:
        """Its exit status; negative: the signal that ended it."""
        return await self._child.ended()

    async def gone(self) -> int | None:
        """Kill it; its exit status, or none: it sits in the kernel, and is left behind."""
        return await self._child.gone()

    async def end(self) -> None:
        """Close the socket, which ends a healthy worker; kill one that does not follow.

        Then nothing is left of it, or it sits in the kernel; and the agent holds nothing of it.
        """
        self._frames.transport.close()
        try:
            async with asyncio.timeout(0 if self._child.stuck else STOP_TIMEOUT_S):
                await self._child.ended()
        except TimeoutError:
            await self._child.gone()
        self._frames.transport.abort()  # what it never read is not kept for it
        os.close(self._pipe)
        self._pipe = -1
        self.arena.close()


async def spawned(
    zygote: Zygote,
    heard: Heard,
    ended: Ended,
    arena_bytes: int,
    environment: Mapping[str, str] = NOTHING_MORE,
) -> Process:
    """Start a worker; `environment` is added to the agent's own. Raises OSError."""
    with ExitStack() as theirs, ExitStack() as ours:
        near, far = socket.socketpair()
        ours.callback(near.close)
        theirs.callback(far.close)
        for end in (near, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        read, write = os.pipe()
        theirs.callback(os.close, read)
        ours.callback(os.close, write)
        os.set_blocking(write, False)
        arena = Arena(arena_bytes)
        ours.callback(arena.close)
        child = await zygote.fork((far.fileno(), read, arena.fd), environment)
        try:
            loop = asyncio.get_running_loop()
            _, frames = await loop.create_unix_connection(lambda: Frames(heard, ended), sock=near)
        except (OSError, asyncio.CancelledError):
            await through(child.gone())
            raise
        ours.pop_all()
    return Process(child, frames, write, arena)


def named(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        number = -status  # of a real-time signal Python knows no name
        known = number in signal.Signals.__members__.values()
        return f"signal {signal.Signals(number).name if known else number}"
    return f"exit status {status}"
