"""The child process of a domain: its models, one socket, one batch of calls after the other.

Started by domains/process.py as `python -m agent.inference.worker SOCKET PIPE ARENA AGENT`: three
descriptors and the agent's process id. It ends when the agent ends, in whatever way that happens.

Calls run on the main thread. A second one waits for the ids of calls that the agent withdraws, and
ends the run of one that is under way; as long as there are none it costs nothing.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import msgspec
from onnxruntime import RunOptions

from agent import child
from agent.errors import HoldfastError
from agent.inference import wire
from agent.inference.arena import seen
from agent.inference.engines import Call, Done, Engine, Faulty, engine

WITHDRAWN_MAX = 4096  # remembered; an id is forgotten once its call has come


def now_s() -> float:
    """The clock that deadlines are of."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Withdrawals:
    """Which calls nobody waits for any more."""

    def __init__(self, pipe: int) -> None:
        self.options = RunOptions()
        self._lock = threading.Lock()
        self._ids: dict[int, None] = {}
        self._running: set[int] = set()
        self._pipe = pipe
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, ids: list[int]) -> set[int]:
        """These are to run now: those of them that are withdrawn already."""
        with self._lock:
            gone = {i for i in ids if self._ids.pop(i, 0) is None} if self._ids else set()
            self._running = set(ids) - gone
            return gone

    def end(self) -> None:
        """Nothing runs now."""
        with self._lock:
            self._running = set()
            if self.options.terminate:
                self.options.terminate = False

    def _listen(self) -> None:
        while content := os.read(self._pipe, wire.WITHDRAWAL.size * 64):
            with self._lock:
                for (i,) in wire.WITHDRAWAL.iter_unpack(content):
                    self._withdraw(i)

    def _withdraw(self, i: int) -> None:
        if i in self._running:
            self._running.discard(i)
            if not self._running:  # nobody else's call is in this run
                self.options.terminate = True
            return
        self._ids[i] = None
        if len(self._ids) > WITHDRAWN_MAX:  # of calls that were answered before this came
            del self._ids[next(iter(self._ids))]


class Worker:
    """Answers the agent, until it closes the socket."""

    def __init__(self, sock: socket.socket, withdrawals: Withdrawals, arena: memoryview) -> None:
        self._sock = sock
        self._inbox = wire.Inbox(sock)
        self._withdrawals = withdrawals
        self._arena = arena
        self._engines: dict[str, Engine] = {}

    def load(self) -> None:
        """Load what the agent's first message names, and say so."""
        head, _ = self._inbox.receive()
        setup = msgspec.msgpack.decode(head, type=wire.Setup)
        for one in setup.models:
            self._engines[one.name] = engine(one.engine)(one, setup)
        loaded = {name: found.loaded for name, found in self._engines.items()}
        wire.send(self._sock, wire.Hello(loaded))

    def serve(self) -> None:
        """Answer one batch after the other."""
        decoder = msgspec.msgpack.Decoder(wire.Batch)
        while True:
            head, body = self._inbox.receive()
            received_s = now_s()
            batch = decoder.decode(head)
            bodies = self._bodies(batch, body)
            began_s = now_s()
            found = self._run(batch, list(bodies), began_s)
            self._answer(batch, found, received_s, began_s)

    def _bodies(self, batch: wire.Batch, body: memoryview) -> Iterator[memoryview]:
        rest = body
        for call in batch.calls:
            if call.at == wire.NOT_IN_ARENA:
                yield rest[: call.size_bytes]
                rest = rest[call.size_bytes :]
            else:
                yield self._arena[call.at : call.at + call.size_bytes]

    def _run(
        self, batch: wire.Batch, bodies: list[memoryview], now_s: float
    ) -> list[Done | Faulty]:
        gone = self._withdrawals.begin([call.id for call in batch.calls])
        if not gone and min([call.deadline_s for call in batch.calls]) >= now_s:
            return self._engine_run(
                batch.model,
                [Call(call.head, body) for call, body in zip(batch.calls, bodies, strict=True)],
            )
        found: list[Done | Faulty] = []
        due: list[Call] = []
        for call, body in zip(batch.calls, bodies, strict=True):
            if call.id in gone:
                found.append(Faulty("withdrawn", ""))
            elif call.deadline_s < now_s:
                found.append(Faulty("expired", ""))
            else:
                due.append(Call(call.head, body))
        answers = self._engine_run(batch.model, due)
        rest, faults = iter(answers), iter(found)
        late = {c.id for c in batch.calls if c.id in gone or c.deadline_s < now_s}
        return [next(faults) if c.id in late else next(rest) for c in batch.calls]

    def _engine_run(self, model: str, calls: list[Call]) -> list[Done | Faulty]:
        try:
            return self._engines[model].run(calls, self._withdrawals.options) if calls else []
        finally:
            self._withdrawals.end()

    def _answer(
        self, batch: wire.Batch, found: list[Done | Faulty], received_s: float, began_s: float
    ) -> None:
        answers: list[wire.Answer] = []
        body: list[wire.Buffer] = []
        total = 0
        for one in found:
            if isinstance(one, Faulty):
                answers.append(wire.Answer(fault=one.fault, message=one.message))
                continue
            answers.append(wire.Answer(one.head, one.size_bytes))
            body += one.body
            total += one.size_bytes
        at, room = batch.room
        if 0 < total <= room:
            self._put(at, body)
            body = []
        else:
            at = wire.NOT_IN_ARENA
        wire.send(
            self._sock, wire.Answers(batch.id, answers, received_s, began_s, now_s(), at), body
        )

    def _put(self, at: int, body: list[wire.Buffer]) -> None:
        for buffer in body:
            view = memoryview(buffer).cast("B")
            self._arena[at : at + len(view)] = view
            at += len(view)


def main(fd: str, pipe: str, arena: str, parent: str) -> None:
    """Serve on the descriptors that the agent passed."""
    child.live_with(int(parent))
    # A lost connection: the agent is gone, or has closed the domain.
    with socket.socket(fileno=int(fd)) as sock, suppress(ConnectionError):
        try:
            worker = Worker(sock, Withdrawals(int(pipe)), seen(int(arena)))
            worker.load()
            worker.serve()
        except HoldfastError as error:
            wire.send(sock, wire.Failure(str(error)))
        except ConnectionError:
            raise
        except Exception as error:  # whatever it is, the agent is to name it before we end of it
            wire.send(sock, wire.Failure(f"the worker ended: {error!r}"))
            raise  # its traceback goes to standard error


if __name__ == "__main__":
    main(*sys.argv[1:])
