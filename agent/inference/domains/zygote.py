"""The agent's side of the process that workers are forked from, and of each child's end.

Limits  : one zygote, one fork at a time; it answers within FORK_TIMEOUT_S, or is killed. A child
          that is killed and does not end within KILLED_S sits in the kernel, in a read that a disk
          or a driver does not answer: it is left behind. Where STUCK_MAX are, none is forked.
Recovery: a zygote that ended is replaced when the next worker is wanted; its workers go on. What
          was left behind is reaped when the kernel lets go of it.
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
KILLED_S = 5.0  # to give back what it has: a GPU's memory may take a while
STUCK_MAX = 8


class Child:
    """A child process of this one's, and its exit status."""

    def __init__(self, pid: int, reap: Callable[[], int]) -> None:
        """`reap` gives the exit status of one that has ended, once. Raises OSError."""
        self.pid = pid
        self.stuck = False  # it was killed, and is left behind
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

    async def gone(self) -> int | None:
        """Kill it; its exit status, or none: it is still there, and left behind."""
        self.kill()
        if not self.stuck:
            with suppress(TimeoutError):
                async with asyncio.timeout(KILLED_S):
                    return await self.ended()
            self.stuck = True
            log.error("process %s was killed, and is still there: it sits in the kernel", self.pid)
        return None

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
        self._workers: dict[int, Child] = {}  # those that are told of, and not reaped
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
        if sum(one.stuck for one in self._workers.values()) >= STUCK_MAX:
            raise OSError(
                f"{STUCK_MAX} processes were killed, and are still there: restart the machine"
            )
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

        def reap() -> int:
            self._workers.pop(pid, None)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        found = self._workers[pid] = Child(pid, reap)
        return found

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
                    await self._child(int(pid)).gone()

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
            await process.gone()


async def _unwanted(forking: asyncio.Future[Child]) -> None:
    await (await forking).gone()
