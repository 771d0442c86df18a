"""The worker's side, in this process: which calls of a message are made, and what is sent back."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from agent.inference import wire
from agent.inference.arena import Arena
from agent.inference.engines import Call, Done, Faulty
from agent.inference.worker import MESSAGE_BYTES_MAX, WITHDRAWN_MAX, Withdrawals, Worker, now_s
from tests.outside import until

OVER_S = 1e9


def done(body: bytes) -> Done:
    """An answer with this body."""
    return Done(msgspec.Raw(msgspec.msgpack.encode(wire.Heard(0, 0))), len(body), [body])


class Echo:
    """An engine that answers with what it was given; what it is told to wait for, it waits for."""

    def __init__(self, batching: bool) -> None:
        self.loaded = wire.Loaded("CPU", 0.0, batching=batching)
        self.runs: list[list[bytes]] = []
        self.times = 1
        self.going_on = threading.Event()
        self.begun = threading.Event()

    def run(self, calls: list[Call], options: Any) -> list[Done | Faulty]:
        self.runs.append([bytes(call.body) for call in calls])
        if b"wait" in self.runs[-1]:
            self.begun.set()
            while not options.terminate and not self.going_on.wait(0.001):
                pass
            if options.terminate:
                return [Faulty("withdrawn", "") for _ in calls]
        return [
            Faulty("failed", "x" * 10_000)
            if call.body == b"bad"
            else done(bytes(call.body) * self.times)
            for call in calls
        ]


class Agent:
    """The other end of a worker that runs in a thread."""

    def __init__(self, batching: bool) -> None:
        self.sock, theirs = socket.socketpair()
        read, self.pipe = os.pipe()
        self.engine = Echo(batching)
        self.arena = Arena(1 << 16)
        self.asked = 1  # the next call's id
        self.withdrawals = Withdrawals(read)
        worker = Worker(theirs, self.withdrawals, self.arena.view)
        worker._engines["m"] = self.engine
        self.inbox = wire.Inbox(self.sock)
        self.thread = threading.Thread(target=self._serve, args=(worker, theirs))
        self.thread.start()

    def _serve(self, worker: Worker, sock: socket.socket) -> None:
        with sock, suppress(wire.Closed):
            worker.serve()

    def ask(self, *bodies: bytes, late: int | None = None, room: tuple[int, int] = (0, 0)) -> None:
        """A message with these calls; the one in place `late` is too late."""
        end_s = now_s() + OVER_S
        calls = [
            wire.Call(i, msgspec.Raw(b"\xc0"), len(body), 0.0 if i - self.asked == late else end_s)
            for i, body in enumerate(bodies, self.asked)
        ]
        self.asked += len(bodies)
        wire.send(self.sock, wire.Batch(7, "m", calls, room), list(bodies))

    def answers(self) -> list[tuple[str, bytes]]:
        """The fault of each call, and its body."""
        head, body = self.inbox.receive()
        message = msgspec.msgpack.decode(head, type=wire.Answers)
        assert message.id == 7
        if message.at != wire.NOT_IN_ARENA:
            body = self.arena.view[message.at :]
        found, at = [], 0
        for one in message.answers:
            assert len(one.message) <= MESSAGE_BYTES_MAX
            found.append((one.fault, bytes(body[at : at + one.size_bytes])))
            at += one.size_bytes
        return found

    def withdraw(self, *ids: int) -> None:
        os.write(self.pipe, b"".join(wire.WITHDRAWAL.pack(i) for i in ids))

    def close(self) -> None:
        self.engine.going_on.set()
        self.sock.close()
        self.thread.join()
        os.close(self.pipe)
        self.arena.close()


@pytest.fixture(params=[True, False], ids=["batching", "one by one"])
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    found = Agent(request.param)
    yield found
    found.close()


def test_each_call_has_its_answer_in_its_place(agent: Agent) -> None:
    agent.ask(b"a", b"bad", b"c", b"d", late=2)
    assert agent.answers() == [("", b"a"), ("failed", b""), ("expired", b""), ("", b"d")]
    made = [body for run in agent.engine.runs for body in run]
    assert made == [b"a", b"bad", b"d"]
    assert len(agent.engine.runs) == (1 if agent.engine.loaded.batching else 3)
    agent.ask(b"e", b"f", room=(64, 100))
    assert agent.answers() == [("", b"e"), ("", b"f")]


def test_the_end_of_one_call_is_not_that_of_others_in_its_run() -> None:
    agent = Agent(True)
    try:
        agent.ask(b"wait", b"b")
        assert agent.engine.begun.wait(30)
        agent.withdraw(1)
        until(lambda: agent.withdrawals._running == {2}, "it is heard")
        agent.engine.going_on.set()
        assert agent.answers() == [("", b"wait"), ("", b"b")]
        agent.engine.going_on.clear()
        agent.engine.begun.clear()
        agent.ask(b"wait", b"b")
        assert agent.engine.begun.wait(30)
        agent.withdraw(3, 4)
        assert agent.answers() == [("withdrawn", b""), ("withdrawn", b"")]
    finally:
        agent.close()


def test_one_by_one_each_ends_by_itself() -> None:
    agent = Agent(False)
    try:
        agent.ask(b"a", b"wait", b"c")
        assert agent.engine.begun.wait(30)
        agent.withdraw(2)
        assert agent.answers() == [("", b"a"), ("withdrawn", b""), ("", b"c")]
        agent.ask(b"d")
        assert agent.answers() == [("", b"d")]
    finally:
        agent.close()


def test_what_finds_no_room_in_a_message_is_to_be_asked_once_more(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "BODY_BYTES_MAX", 100)
    agent.engine.times = 10
    agent.ask(b"a" * 6, b"b" * 5, b"c" * 3, b"d" * 11)
    assert agent.answers() == [
        *(("", b"a" * 60), ("withdrawn", b""), ("", b"c" * 30)),
        ("failed", b""),  # it would never find room
    ]


def test_withdrawals_are_forgotten_when_they_have_been_of_use() -> None:
    read, write = os.pipe()
    found = Withdrawals(read)
    os.write(write, wire.WITHDRAWAL.pack(5))
    until(lambda: found._ids, "it is heard")
    assert found.begin([5, 6]) == {5}
    found.end()
    assert found.begin([5, 6]) == set()
    found.end()
    for i in range(0, WITHDRAWN_MAX + 640, 64):
        os.write(write, b"".join(wire.WITHDRAWAL.pack(100 + i + k) for k in range(64)))
    until(lambda: 100 + WITHDRAWN_MAX + 639 in found._ids, "all are heard")
    assert len(found._ids) == WITHDRAWN_MAX
    os.close(write)
