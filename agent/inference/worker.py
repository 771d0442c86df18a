"""The child process of a domain: its models, one socket, one batch of calls after the other.

Forked by zygote.py, which calls `main` with three descriptors, SOCKET PIPE ARENA, and the agent's
process id. It ends when the agent ends, in whatever way that happens.

Calls run on the main thread. A second one waits for the ids of calls that the agent withdraws, and
ends the run of one that is under way; as long as there are none it costs nothing.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from onnxruntime import RunOptions

from agent import child
from agent.errors import HoldfastError, ModelError
from agent.inference import wire
from agent.inference.arena import seen
from agent.inference.engines import Call, Done, Engine, Faulty, engine

WITHDRAWN_MAX = 4096  # remembered; an id is forgotten once its call has come
MESSAGE_BYTES_MAX = 900  # of one call: all of a batch are to find room in a head
HEAD_ROOM_BYTES = 32  # what an answer takes beside its head and its message


def now_s() -> float:
    """The clock that deadlines are of."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Withdrawals:
    """Which calls nobody waits for any more."""

    def __init__(self, pipe: int) -> None:
        self.options = RunOptions()
        self.options.log_severity_level = 4  # what fails is told in the answer
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
            _unchanged(one)
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
            began_s = now_s()
            found = self._run(batch, self._bodies(batch, body))
            self._answer(batch, found, received_s, began_s)

    def _bodies(self, batch: wire.Batch, body: memoryview) -> Iterator[memoryview]:
        rest = body
        for call in batch.calls:
            if call.at == wire.NOT_IN_ARENA:
                yield rest[: call.size_bytes]
                rest = rest[call.size_bytes :]
            else:
                yield self._arena[call.at : call.at + call.size_bytes]

    def _run(self, batch: wire.Batch, bodies: Iterator[memoryview]) -> list[Done | Faulty]:
        if not batch.calls:  # the agent asks whether somebody is there
            return []
        model = self._engines[batch.model]
        calls = list(zip(batch.calls, bodies, strict=True))
        if model.loaded.batching:
            return self._together(model, calls)
        # One after the other: the end of one that is withdrawn must not be that of others.
        return [found for call in calls for found in self._together(model, [call])]

    def _together(
        self, model: Engine, calls: list[tuple[wire.Call, memoryview]]
    ) -> list[Done | Faulty]:
        began_s = now_s()
        gone = self._withdrawals.begin([call.id for call, _ in calls])
        found: list[Faulty | None] = []
        due: list[Call] = []
        for call, body in calls:
            if call.id in gone:
                found.append(Faulty("withdrawn", ""))
            elif call.deadline_s < began_s:
                found.append(Faulty("expired", ""))
            else:
                found.append(None)
                due.append(Call(call.head, body))
        try:
            answers = iter(model.run(due, self._withdrawals.options) if due else ())
        finally:
            self._withdrawals.end()
        return [one or next(answers) for one in found]

    def _answer(
        self, batch: wire.Batch, found: list[Done | Faulty], received_s: float, began_s: float
    ) -> None:
        answers: list[wire.Answer] = []
        body: list[wire.Buffer] = []
        head_bytes = total = 0
        for one in found:
            answer = _answered(one)
            head_bytes += HEAD_ROOM_BYTES + len(answer.head) + len(answer.message)
            body_bytes = total + answer.size_bytes
            if answers and (head_bytes > wire.HEAD_BYTES_MAX or body_bytes > wire.BODY_BYTES_MAX):
                answer = wire.Answer(fault="withdrawn")  # no room in this message: once more
            elif isinstance(one, Done) and not answer.fault:
                body += one.body
            answers.append(answer)
            total += answer.size_bytes
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


def _unchanged(load: wire.Load) -> None:
    """Whether its files are still what was verified, before a process was started anew.

    Raises ModelError.
    """
    for file in load.files:
        try:
            if wire.stamp(file.path) == file.stamp:
                continue
            import hashlib  # seldom needed, and large

            with Path(file.path).open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"{file.path}: cannot be read: {error.strerror}") from error
        if found != file.sha256:
            raise ModelError(
                f"{file.path}: was changed after it was verified: its sha256 is {found[:12]}…, "
                f"expected {file.sha256[:12]}…; put the file back, or load another version"
            )


def _answered(one: Done | Faulty) -> wire.Answer:
    """As it is sent, if it can be."""
    if isinstance(one, Faulty):
        said = one.message.encode()[:MESSAGE_BYTES_MAX].decode(errors="ignore")
        return wire.Answer(fault=one.fault, message=said)
    size = one.size_bytes
    if size > wire.BODY_BYTES_MAX:
        return wire.Answer(
            fault="failed",
            message=f"its outputs take {size} bytes, above {wire.BODY_BYTES_MAX}: ask for less",
        )
    return wire.Answer(one.head, size)


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
