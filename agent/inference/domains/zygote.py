"""The agent's side of the process that workers are forked from, and of each child's end.

Limits  : one zygote, one fork at a time; it answers within FORK_TIMEOUT_S, or is killed.
Recovery: a zygote that ended is replaced when the next worker is wanted; its workers go on.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from agent import child
from agent.inference import wire
from agent.tasks import through

log = logging.getLogger("domain")
ZYGOTE = (sys.executable, "-P", "-m", "agent.inference.zygote")
# NumPy puts tensors together, no more: a pool of threads for its algebra is memory for nothing.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
FORK_TIMEOUT_S = 30.0


class Child:
    """A child process of this one's, and its exit status."""

    def __init__(self, pid: int, reap: Callable[[], int]) -> None:
        """`reap` gives the exit status of one that has ended, once. Raises OSError."""
        self.pid = pid
        self._reap = reap
        self._loop = asyncio.get_running_loop()
        self._status: asyncio.Future[int] = self._loop.create_future()
        try:
            self._fd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # nobody has reaped it: it is still this process
            reap()
            raise
        self._loop.add_reader(self._fd, self._over)

    def kill(self) -> None:
        """End it now; nothing happens if it has ended."""
        if not self._status.done():
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def waited_s(self) -> float:
        """How long its main thread has been ready to run, and had no processor."""
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        except OSError:
            return 0.0  # it is gone, or this kernel does not count

    async def ended(self) -> int:
        """Its exit status; negative: the signal that ended it."""
        return await asyncio.shield(self._status)

    def _over(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._status.set_result(self._reap())


class Zygote:
    """Forks workers; an async context manager, at whose end it is gone."""

    def __init__(self, worker: str = "agent.inference.worker") -> None:
        """`worker` is the module whose `main` a worker runs."""
        self._worker = worker
        self._turn = asyncio.Lock()
        self._process: Child | None = None
        self._workers: set[int] = set()  # those that are told of, and not reaped
        self._socket: socket.socket

    async def __aenter__(self) -> Self:
        with suppress(OSError):  # it is tried again, and told, when a worker is wanted
            self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await through(self._end())

    @property
    def pid(self) -> int | None:
        """Its process id, while there is one."""
        return self._process.pid if self._process else None

    async def fork(self, fds: Sequence[int], environment: Mapping[str, str]) -> Child:
        """A worker with these descriptors; `environment` is added to the agent's. Raises OSError.

        Cancelled, it leaves none.
        """
        forking = asyncio.ensure_future(self._forked(fds, environment))
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:
            with suppress(OSError):
                await through(_unwanted(forking))
            raise

    async def _forked(self, fds: Sequence[int], environment: Mapping[str, str]) -> Child:
        content = msgspec.msgpack.encode(dict(environment))
        async with self._turn:
            answer = await self._asked(content, fds) or await self._asked(content, fds)
        if not answer:
            raise OSError("what workers are forked from has ended twice, or does not answer")
        pid: int = wire.PID.unpack(answer)[0]
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return self._child(pid)

    def _child(self, pid: int) -> Child:
        """Raises OSError."""
        self._workers.add(pid)

        def reap() -> int:
            self._workers.discard(pid)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        return Child(pid, reap)

    async def _asked(self, content: bytes, fds: Sequence[int]) -> bytes:
        """The answer; nothing when the zygote is at its end. Raises OSError."""
        if self._process is None:
            self._begin()
        loop = asyncio.get_running_loop()
        child.adopt(orphans=True)  # what it forks, and for no longer: nobody waits for others
        try:
            async with asyncio.timeout(FORK_TIMEOUT_S):
                socket.send_fds(self._socket, [content], fds)
                answer = await loop.sock_recv(self._socket, wire.PID.size)
        except (TimeoutError, ConnectionError) as error:
            log.warning("no worker could be forked: %r", error)
            answer = b""
        finally:
            child.adopt(orphans=False)
        if not answer:
            await self._end()
            await self._end_untold()
        return answer

    async def _end_untold(self) -> None:
        """What it had forked, and never told of: they are children of this process all the same."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                pid, name, _, parent = stat.read_text(errors="replace").split()[:4]
                ours = parent == str(os.getpid()) and int(pid) not in self._workers
                if ours and name == f"({wire.WORKER})":
                    await _gone(self._child(int(pid)))

    def _begin(self) -> None:
        """Start it. Raises OSError."""
        near, far = socket.socketpair()
        near.setblocking(False)
        try:
            with far:
                process = subprocess.Popen(
                    (*ZYGOTE, str(far.fileno()), str(os.getpid()), self._worker),
                    pass_fds=(far.fileno(),),
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **ENVIRONMENT},
                )
            self._process = Child(process.pid, process.wait)
        except OSError:
            near.close()
            raise
        self._socket = near

    async def _end(self) -> None:
        """It holds nothing that would be lost."""
        if process := self._process:
            self._process = None
            self._socket.close()
            process.kill()
            await process.ended()


async def _unwanted(forking: asyncio.Future[Child]) -> None:
    await _gone(await forking)


async def _gone(found: Child) -> None:
    found.kill()
    await found.ended()
