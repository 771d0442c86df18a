"""Devices that take commands, as the protocol says, and nothing else: no store, no agent.

Each has a broker's session that outlives its connection, a journal by id, and a nature: what it
makes of a command. It counts its effects, so that one that is had twice shows. Any number of them
live in one loop. tests/fleet/control, bench/rollout.py and bench/commands.py use them.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

import msgspec

from agent.protocol import commands
from agent.protocol.commands import Command, Result, State, Unread
from agent.protocol.presence import Presence
from agent.protocol.topics import Topics
from agent.protocol.twin import Reported
from fleet.mqtt.connection import MQTT5, MQTT311, Broker, Connection, Message
from tests.sim.crowd import allow_files

PREFIX = "holdfast/v1"
AT_ONCE = 50  # that connect together: fewer than a broker's backlog
Answer = tuple[State, str, str]  # state, reason, message
Nature = Callable[[Command], Sequence[Answer]]


def good(_: Command) -> Sequence[Answer]:
    """Does it."""
    return [("accepted", "", ""), ("succeeded", "", "")]


def slow(_: Command) -> Sequence[Answer]:
    """Accepts it, and tells no end."""
    return [("accepted", "", ""), ("running", "", "")]


def failing(_: Command) -> Sequence[Answer]:
    """Tries, fails, and takes it back by itself."""
    told = "it failed its probation and was taken back"
    return [("accepted", "", ""), ("running", "", ""), ("failed", "failed", told)]


def refusing(_: Command) -> Sequence[Answer]:
    """Does not allow it."""
    return [("refused", "not_allowed", "not here")]


def mute(_: Command) -> Sequence[Answer]:
    """Never says a word."""
    return []


class Commanded:
    """One device; `come` and `leave` as often as wanted."""

    def __init__(
        self, name: str, url: str, nature: Nature = good, work_s: float = 0.0, *, v5: bool = True
    ) -> None:
        """An effect takes `work_s`, after `accepted`."""
        self.name = name
        self.nature = nature
        self.journal: dict[str, list[Result]] = {}
        self.effects: Counter[str] = Counter()
        self.heard: list[bytes] = []
        self.desired: list[bytes] = []
        self._work_s = work_s
        self._version = MQTT5 if v5 else MQTT311
        self._topics = Topics(PREFIX, name)
        self._broker = Broker(url=url, client_id=f"holdfast-{name}", keepalive_s=300)
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    async def come(self) -> None:
        """Connect, listen, and say so."""
        made = Connection(
            *(self._broker, self._broker.client_id, self._version, self._queue.put_nowait),
            fresh=False,
        )
        self._connection = await made.__aenter__()
        await made.subscribe({self._topics.cmd: 1, self._topics.desired: 1})
        await self._present(online=True)
        self._task = asyncio.create_task(self._live(made))

    async def leave(self) -> None:
        """Say so, and be gone."""
        if self._connection and self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            if not self._connection.ended.done():
                await self._present(online=False)
            await self._connection.__aexit__()
            self._connection = self._task = None

    async def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish, and wait for the broker's word."""
        assert self._connection is not None
        await (await self._connection.publish(topic, payload, retain=retain))

    async def report(self, desired_version: int) -> None:
        """Its own document."""
        told = Reported(
            device=self.name, version=1, desired_version=desired_version, holdfast="0", state={}
        )
        await self.say(self._topics.reported, msgspec.json.encode(told), retain=True)

    async def tell(self, result: Result) -> None:
        """A result, with QoS 1; the broker's word is not waited for."""
        assert self._connection is not None
        payload = msgspec.json.encode(result)
        await self._connection.publish(self._topics.result, payload, retain=False)

    async def _present(self, *, online: bool) -> None:
        word = Presence(
            device=self.name, online=online, epoch="e1", version="0.1.0", ack_from="ingest"
        )
        await self.say(self._topics.presence, msgspec.json.encode(word), retain=True)

    async def _live(self, connection: Connection) -> None:
        while True:
            message = await self._queue.get()
            if message.topic == self._topics.desired:
                self.desired.append(message.payload)
            else:
                self.heard.append(message.payload)
                await self._obey(message.payload)
            message.take()

    async def _obey(self, payload: bytes) -> None:
        try:
            command = commands.decode(payload).command
        except Unread as error:
            await self.tell(self._result(error.id, error.name, ("refused", error.reason, "")))
            return
        if command.id in self.journal:
            for known in self.journal[command.id][-1:]:
                await self.tell(known)
            return
        told = self.journal[command.id] = []
        answers = self.nature(command)
        for answer in answers:
            if answer[0] == "accepted":
                self.effects[command.id] += 1
            elif self._work_s:
                await asyncio.sleep(self._work_s)
            told.append(self._result(command.id, command.name, answer))
            await self.tell(told[-1])

    def _result(self, id_: str, name: str, answer: Answer) -> Result:
        state, reason, message = answer
        return msgspec.convert(
            {
                **{"id": id_, "name": name, "device": self.name, "state": state},
                **{"reason": reason, "message": message, "number": len(self.journal)},
            },
            Result,
        )


class Crew:
    """Devices that are connected from the entry to the exit."""

    def __init__(self, devices: Sequence[Commanded]) -> None:
        self.devices = devices

    async def __aenter__(self) -> Self:
        allow_files(2 * len(self.devices))
        for first in range(0, len(self.devices), AT_ONCE):
            some = self.devices[first : first + AT_ONCE]
            await asyncio.gather(*(device.come() for device in some))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(device.leave() for device in self.devices))

    @property
    def effects(self) -> Counter[tuple[str, str]]:
        """How often each device had an effect of an id."""
        return Counter(
            {(one.name, id_): n for one in self.devices for id_, n in one.effects.items()}
        )
