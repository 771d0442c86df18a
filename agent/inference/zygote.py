"""The process that workers are forked from: Python, and what a worker imports, but no model.

A worker begins in a few milliseconds so, where a new Python needs a fifth of a second on a PC
until it has imported NumPy and ONNX Runtime; and what was imported is in memory once for all.

Started by domains/zygote.py as `python -m agent.inference.zygote SOCKET AGENT WORKER`: the socket's
descriptor, the agent's process id, and the module whose `main` a worker runs. A message brings the
worker's three descriptors, and as its content what is to be added to the environment; the answer is
the worker's process id, or below zero why there is none (errno).

A worker is no child of this process: nothing happens to it when this one ends. It is forked by a
process between the two, which ends at once and leaves it to the agent.
"""

import errno
import gc
import importlib
import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from types import ModuleType
from typing import NoReturn

import msgspec

from agent import child
from agent.inference import wire

BEGIN = b"\0"  # to a worker


def main(fd: str, agent: str, module: str) -> None:
    """Fork workers until the agent closes the socket."""
    child.live_with(int(agent))
    child.be_named("hf-zygote")
    worker = importlib.import_module(module)
    from agent.inference.engines import hearing, onnx  # noqa: F401  (most workers need one)

    gc.collect()
    gc.freeze()  # a collection in a worker would write to each object, and so copy its page
    with socket.socket(fileno=int(fd)) as sock:
        while True:
            try:
                content, fds, _, _ = socket.recv_fds(sock, wire.ASK_BYTES_MAX, wire.ASK_DESCRIPTORS)
            except ConnectionError:
                return
            if not content:
                return
            _forked(
                partial(_work, sock, worker, content, fds, agent),
                lambda pid: sock.sendall(wire.PID.pack(pid)),
            )
            for one in fds:
                os.close(one)


def _work(
    sock: socket.socket, worker: ModuleType, content: bytes, fds: list[int], agent: str
) -> None:
    """The life of a worker."""
    sock.close()
    os.environ.update(msgspec.msgpack.decode(content, type=dict[str, str]))
    worker.main(*map(str, fds), agent)


def _forked(life: Callable[[], None], tell: Callable[[int], None]) -> None:
    """Fork a child of the agent's that leads this life, and tell its process id, or an errno below.

    It begins only once that is told: an agent that never hears of it may fork another one for the
    same descriptors.
    """
    pid = -errno.EAGAIN
    with ExitStack() as held:
        try:
            near, far = map(held.enter_context, socket.socketpair())
            between = os.fork()
            if not between:
                near.close()
                _between(far, life)
            far.close()
            os.waitpid(between, 0)
            if said := near.recv(wire.PID.size, socket.MSG_DONTWAIT):
                pid = wire.PID.unpack(said)[0]
        except OSError as error:
            pid = -(error.errno or errno.EAGAIN)
        tell(pid)
        if pid > 0:
            with suppress(OSError):  # it has ended already
                near.send(BEGIN)


def _between(far: socket.socket, life: Callable[[], None]) -> NoReturn:
    """Fork once more, and end: what is forked here has the agent for its parent then."""
    status = 1
    try:
        child.be_named(wire.WORKER)
        if pid := os.fork():
            far.sendall(wire.PID.pack(pid))
        elif _wanted(far):
            life()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    finally:  # this process ends here: what was raised has nowhere else to go
        if raised := sys.exc_info()[1]:
            traceback.print_exception(raised)
        sys.stderr.flush()
        os._exit(status)


def _wanted(far: socket.socket) -> bool:
    """Wait until this process is told of; not, if what would tell has ended."""
    with far, suppress(ConnectionError):
        return bool(far.recv(len(BEGIN)))
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
