"""Names and addresses of a broker that do not answer: what a bad network does to the link."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.clock import Clock
from agent.compose.moving import AGENT, BEYOND_S, PART
from agent.health.watchdog import policy
from agent.health.watchdog.policy import Reading, Rule
from agent.sync.mqtt.call import THREADS_MAX
from agent.sync.mqtt.reach import reached
from tests.outside import Mosquitto, free_port
from tests.sync.rig import DEADLINE_S, Rig, Stub, emptied, eventually, linked, served, silent

# paho leaves the socket of a failed handshake to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
NAME = "broker.example"
Lookup = Callable[..., Any]


@contextmanager
def swallowed(*ends: int, port: int) -> Iterator[None]:
    """At these addresses of 127.0.1.0/24 every SYN is dropped: their backlog is full."""
    with ExitStack() as stack:
        for end in ends:
            listener = stack.enter_context(socket.socket())
            listener.bind((f"127.0.1.{end}", port))
            listener.listen(0)
            for _ in range(3):
                caller = stack.enter_context(socket.socket())
                caller.setblocking(False)
                caller.connect_ex((f"127.0.1.{end}", port))
        yield


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[Lookup], None]:
    """Have the system's look-up of NAME be this one."""
    real = socket.getaddrinfo

    def say(lookup: Lookup) -> None:
        def asked(host: str, *more: Any, **others: Any) -> Any:
            return lookup() if host == NAME else real(host, *more, **others)

        monkeypatch.setattr(socket, "getaddrinfo", asked)

    return say


def at(*addresses: str, port: int) -> Lookup:
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    return lambda: [(*kind, (address, port)) for address in addresses]


async def test_addresses_that_swallow_keep_nobody_from_the_one_that_answers(
    tmp_path: Path, broker: Mosquitto, named: Callable[[Lookup], None]
) -> None:
    dead = [f"127.0.1.{end}" for end in (1, 2, 3)]
    named(at(*dead, "127.0.0.1", port=broker.port))
    settings = {"connect_timeout_s": 1.0, "ack_from": "broker"}
    with swallowed(1, 2, 3, port=broker.port):
        async with linked(Rig(tmp_path, f"mqtt://{NAME}:{broker.port}", **settings)) as rig:
            await rig.fill(3)
            await emptied(rig)


async def test_a_network_that_drops_all_packets_is_never_a_reason_for_a_remedy(
    tmp_path: Path, named: Callable[[Lookup], None]
) -> None:
    """The watchdog's policy looks on, with the bound that the link itself names."""
    port, ends = free_port(), range(1, 31)
    named(at(*(f"127.0.1.{end}" for end in ends), port=port))
    with swallowed(*ends, port=port):
        async with linked(Rig(tmp_path, f"mqtt://{NAME}:{port}", connect_timeout_s=0.5)) as rig:
            link, standing = rig.link, None
            rule = Rule(link.step_s_max, link.step_s_max + BEYOND_S, (PART, AGENT))
            while link.steps < 5:
                reading, now_s = Reading(link.steps, owed=not link.rests), rig.clock.monotonic()
                standing = policy.seen(standing, reading, now_s)
                assert policy.due(rule, standing, now_s) is None
                await asyncio.sleep(0.05)
            assert rig.says("timed out") or rig.says("not reached")


def test_the_first_of_many_is_not_given_all_of_the_time(named: Callable[[Lookup], None]) -> None:
    port, clock = free_port(), Clock()
    named(at("127.0.1.1", "127.0.1.2", port=port))
    with swallowed(1, port=port), pytest.raises(OSError, match="refused") as told:
        reached(NAME, port, clock.monotonic() + 0.6, clock)
    assert str(told.value).startswith("none of its 2 addresses answers")


def test_a_name_that_came_too_late_is_not_called(named: Callable[[Lookup], None]) -> None:
    """Its call was given up: another one may be under way, and would be ended by a twin."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        port, clock = listener.getsockname()[1], Clock()
        named(at("127.0.0.1", port=port))
        with pytest.raises(TimeoutError):
            reached(NAME, port, clock.monotonic(), clock)
        with pytest.raises(BlockingIOError):
            listener.accept()


class Resolver:
    """A name server that does not answer, until it does."""

    def __init__(self, answer: Lookup) -> None:
        self.answers = threading.Event()
        self.asked = 0
        self._answer = answer

    def __call__(self) -> Any:
        self.asked += 1
        self.answers.wait()
        return self._answer()


async def test_a_name_server_that_never_answers_is_given_up_and_costs_a_bounded_number_of_threads(
    tmp_path: Path, broker: Mosquitto, named: Callable[[Lookup], None]
) -> None:
    named(resolver := Resolver(at("127.0.0.1", port=broker.port)))
    settings = {"connect_timeout_s": 0.02, "ack_from": "broker"}
    try:
        async with linked(Rig(tmp_path, f"mqtt://{NAME}:{broker.port}", **settings)) as rig:
            await eventually(lambda: rig.says("not reached in 0.04 s"), "the cause")
            await eventually(lambda: rig.says("are not back yet"), "there are enough")
            steps = rig.link.steps
            await eventually(lambda: rig.link.steps > steps + 3, "it goes on trying")
            assert resolver.asked == THREADS_MAX
            await rig.fill(3)
            rig.link._caller.whole_s = 10.0  # the broker has more time than the name server had
            resolver.answers.set()
            await emptied(rig)
    finally:
        resolver.answers.set()


async def test_a_call_its_answer_and_the_introduction_are_steps_of_their_own(
    tmp_path: Path,
) -> None:
    """Each may take all of its time; together they are longer than the watchdog waits."""
    async with served(silent) as port:
        url = f"mqtt://127.0.0.1:{port}"
        async with linked(Rig(tmp_path, url, connect_timeout_s=3600)) as rig:
            await eventually(lambda: rig.link.steps == 2, "begun, and called")
            assert rig.says("not connected yet")
    async with Mute() as mute, linked(Rig(tmp_path, mute.url, connect_timeout_s=3600)) as rig:
        await eventually(lambda: mute.subscribed, "it introduces itself")
        assert rig.link.steps == 3, "and it is taken"
        assert not rig.link.connected_since


class Mute(Stub):
    """A broker that answers to CONNECT alone."""

    subscribed = False

    def _answer(self, kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == 0x10:
            super()._answer(kind, body, writer)
        else:
            self.subscribed = True


async def test_tls_has_what_is_left_of_the_time(tmp_path: Path) -> None:
    async with served(silent) as port:
        url = f"mqtts://127.0.0.1:{port}"
        async with linked(Rig(tmp_path, url, connect_timeout_s=0.3)) as rig:
            await eventually(lambda: rig.says("timed out") or rig.says("not reached"), "the cause")


def test_a_family_that_the_kernel_lacks_keeps_nobody_from_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        found = [
            (999, socket.SOCK_STREAM, 0, "", ("::1", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        clock = Clock()
        with reached("b.example", port, clock.monotonic() + DEADLINE_S, clock) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)
