"""What a broken worker says ends it; nobody is given less than was promised."""

from typing import Any, cast

import msgspec
import pytest

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.inference import wire
from agent.inference.arena import Arena
from agent.inference.domains.flight import Bodies, Flight
from agent.inference.domains.instance import Instance
from agent.inference.domains.process import Process
from agent.inference.domains.watch import PING, Watch
from agent.inference.domains.work import Class, Work
from agent.inference.domains.zygote import Zygote
from bench.unconfined import Unconfined

ARENA_BYTES = 1 << 12


class Silent:
    """In the place of a domain, and of a process."""

    pid = 1

    def __init__(self) -> None:
        self.arena = Arena(ARENA_BYTES)
        self.killed = False
        self.done = 0

    def kill(self) -> None:
        self.killed = True

    def answered(self, *_: object) -> None:
        self.done += 1

    def ailing(self, *_: object) -> None:
        """Nobody asks."""

    def went(self, _: object, begun: list[Work], waiting: list[Work], __: str) -> None:
        self.handed_back = begun, waiting


def said(**more: Any) -> bytes:
    fields: dict[str, Any] = {"id": 1, "answers": [wire.Answer(size_bytes=10)], **more}
    return msgspec.msgpack.encode(wire.Answers(**fields, received_s=0, began_s=0, ended_s=0))


def made(silent: Silent) -> Instance:
    setup, rules = wire.Setup([], ["cpu"], 1), Settings(models=["m"])
    parts = (cast(Any, silent), Clock(), Unconfined(), Zygote())
    instance = Instance(setup, {"m": "m/1"}, rules, *parts)
    instance._process = cast(Process, silent)
    instance._bodies = Bodies(silent.arena)
    instance._watch = Watch(instance._process, instance.flights, rules, Clock(), instance.kill)
    instance.loaded = {"m": wire.Loaded("CPUExecutionProvider", 0.0)}
    return instance


def call() -> Work:
    parts = {"size_bytes": 0, "klass": Class.BATCH, "now_s": 0.0, "timeout_s": 1.0}
    return Work("m", msgspec.Raw(b"\xc0"), [], **cast(Any, parts))


@pytest.mark.parametrize(
    ("head", "body", "sound"),
    [
        (said(), bytes(10), True),
        (said(at=ARENA_BYTES - 10), b"", True),
        (said(), bytes(9), False),
        (said(), b"", False),
        (said(at=ARENA_BYTES - 9), b"", False),
        (said(at=1 << 40), b"", False),
        (said(at=-11), b"", False),
        (said(answers=[wire.Answer(size_bytes=n) for n in (20, -10)]), bytes(10), False),
        (said(id=2), bytes(10), False),
        (said(id=PING), bytes(10), False),
        (said(answers=[]), b"", False),
        (b"\xc1", b"", False),
        (msgspec.msgpack.encode(["Hello", 7]), b"", False),
    ],
)
async def test_an_answer_is_whole_or_ends_its_worker(head: bytes, body: bytes, sound: bool) -> None:
    silent = Silent()
    instance, work = made(silent), call()
    instance.flights[1] = flight = Flight([work], 0.0)
    flight.room = (ARENA_BYTES - 10, 10)
    try:
        instance._heard(head, memoryview(body))
        assert silent.killed is not sound
        assert silent.done == sound
        if sound:
            assert len(work.done.result().body) == 10
        else:
            assert not work.done.done(), "it can still be made elsewhere"
    finally:
        silent.arena.close()


@pytest.mark.parametrize("said_last", [b"", b"\xc1"])
async def test_of_who_makes_no_sense_nobody_knows_what_it_has_begun(said_last: bytes) -> None:
    """What must not be made twice is not given to another as if nobody had begun it."""
    silent = Silent()
    instance, works = made(silent), [call(), call()]
    instance.flights = {i: Flight([work], 0.0) for i, work in enumerate(works)}
    try:
        if said_last:
            instance._heard(said_last, memoryview(b""))
        instance._hung_up("")
        instance._hand_back("it ended")
    finally:
        silent.arena.close()
    known = 2 if said_last else 1
    assert silent.handed_back == (works[:known], works[known:])
