"""The link: connects, says that it is there, lets the uplink send, and begins again when it ends.

Which broker is asked, and in which version of MQTT, is chosen in brokers.py, how long it waits
between two rounds in backoff.py. On a fallback it probes the preferred broker beside the connection
that serves, and moves when that answers. It keeps nothing: it can be ended, and another one with
other settings be begun over the same store.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from agent.clock import Clock
from agent.config import Link as Settings
from agent.errors import LinkError, StoreError
from agent.health.conditions import Conditions
from agent.known_time import KnownTime
from agent.protocol.presence import Heartbeat, Presence
from agent.protocol.topics import Topics
from agent.shown import LinkShown
from agent.sync.budget.pace import Pace
from agent.sync.mqtt import dates
from agent.sync.mqtt.backoff import Backoff
from agent.sync.mqtt.brokers import MQTT5, MQTT311, Broker, Brokers
from agent.sync.mqtt.connection import Call, Caller, Connection, Message, Will
from agent.sync.mqtt.dates import Dates
from agent.sync.mqtt.faults import PATIENCE, BadClientId, Preferred, TooLarge
from agent.sync.mqtt.reasons import TAKEN_OVER
from agent.sync.telling import Telling
from agent.sync.up.uplink import Uplink
from agent.tasks import Anew

log = logging.getLogger("link")
STABLE_S = 30.0  # a connection that lasted this long begins the backoff anew
_TWINS = "if it ends again and again, another device may have this device_id"


class Talk(Protocol):
    """What else goes over the connection: commands, the twin."""

    topics: Sequence[str]

    def heard(self, message: Message) -> None:
        """Something came on one of `topics`; it is to be `taken` once it is kept."""

    async def run(self, connection: Connection) -> None:
        """As long as this connection lasts; then it is cancelled. Raises LinkError."""


class Link:
    """The one connection to the cloud, for ever."""

    def __init__(
        self,
        settings: Settings,
        url: str,
        device: str,
        epoch: Callable[[], str],
        uplink: Uplink,
        heartbeat: Callable[[], Awaitable[Heartbeat]],
        conditions: Conditions,
        clock: Clock,
        jitter: random.Random,
        version: str,
        pace: Pace,
        known: KnownTime,
    ) -> None:
        """`version` is Holdfast's; `url` is the broker's, the embedded one's if none is named."""
        self.connected_since: float | None = None  # monotonic
        self.rests = False  # it waits before it tries again
        self._turns = 0  # connections tried, and taken by the broker
        self._settings = settings
        self._device = device
        self._epoch = epoch
        self._topics = Topics(settings.topic_prefix, device)
        self._uplink = uplink
        self._talks: list[Talk] = []
        self._heartbeat = heartbeat
        self._clock = clock
        self._known = known
        self._jitter = jitter
        self._holdfast = version
        self._pace = pace
        self._hurried = asyncio.Event()
        self._client_id = settings.client_id or f"holdfast-{device}"
        # The embedded broker is known not to speak 5, and does not even refuse it.
        best = MQTT5 if settings.broker_url else MQTT311
        self._brokers = Brokers([url, *settings.fallback_urls], clock, best)
        self._backoff = Backoff(settings.backoff_s_min, settings.backoff_s_max, jitter)
        self._tell = Telling(settings, self._topics, conditions)
        self._caller = Caller(settings, clock, known)
        self._life = Anew(self._live)

    @property
    def steps(self) -> int:
        """What it has done; no step takes longer than `step_s_max`, unless it `rests` or the store
        does. None: it has not begun."""
        return self._turns + self._caller.placed + self._uplink.rounds.count

    @property
    def step_s_max(self) -> float:
        """The longest: a call of a broker, or a round of the uplink."""
        return max(self._caller.whole_s, self._uplink.round_s_max)

    def state(self) -> LinkShown:
        """What `status` shows of the link."""
        now = self._clock.monotonic()
        since = self.connected_since
        broker, (cause, down_s) = self._brokers.current, self._tell.why_down()
        return {
            "connected": since is not None,
            "broker": broker.url,
            "embedded": self._settings.broker_url is None and not self._brokers.fallen_back,
            "fallback": self._brokers.fallen_back,
            "protocol": "5" if broker.version == MQTT5 else "3.1.1",
            "ack_from": self._settings.ack_from,
            "connected_s": None if since is None else round(now - since, 1),
            "down_s": down_s,
            "down_cause": cause,
        }

    async def run(self) -> None:
        """Connect, serve the connection to its end, wait, again."""
        await self._life.run()

    async def restart(self, _: str) -> str:
        """Begin anew, as after a connection that was lost. What was done, in words."""
        await self._life.restart()
        return "the link begins anew; what is not acknowledged is sent again"

    def hang(self, seconds: float) -> None:
        """Stand still, as something in it may; for tests of the watch."""
        self._life.hang(seconds)

    async def _live(self) -> None:
        self._tell.down(LinkError("not connected yet"))
        try:
            while True:
                self._turns += 1
                fault = await self._one_connection()
                since, self.connected_since = self.connected_since, None
                self._tell.down(fault)
                if self._wait_is_due(fault, since) and await self._hurried_within(
                    self._backoff.wait_s()
                ):
                    self._backoff.begin_anew()
        finally:
            self.connected_since = None

    def join(self, talk: Talk) -> None:
        """Have it use each connection; to be said before the first one."""
        self._talks = [*self._talks, talk]

    def hurry(self) -> None:
        """End the wait for the next try, if there is one now."""
        self._hurried.set()

    async def _hurried_within(self, seconds: float) -> bool:
        self._hurried.clear()
        self.rests = True
        try:
            async with asyncio.timeout(seconds):
                await self._hurried.wait()
        except TimeoutError:
            return False
        finally:
            self.rests = False
        return True

    def _wait_is_due(self, fault: LinkError, since: float | None) -> bool:
        """Choose the broker that is asked next; whether there is a wait before that."""
        if isinstance(fault, Preferred):
            self._brokers.prefer()
            return False
        if since is None:
            return self._brokers.failed(fault)
        lasted = self._clock.monotonic() - since > STABLE_S
        if lasted:
            self._backoff.begin_anew()
        self._brokers.lost(fault, lasted=lasted)
        return True

    async def _one_connection(self) -> LinkError:
        """Why it ended; its hint says what to do."""
        try:
            async with self._connection() as connection:
                try:
                    await self._serve(connection)
                finally:
                    if connection.code == TAKEN_OVER:
                        self._tell.taken_over(self._client_id)
        except LinkError as error:
            return error
        except ExceptionGroup as group:
            ended, fault = group.split((LinkError, StoreError))
            if fault or not ended:
                raise
            task = asyncio.current_task()
            if task and task.cancelling():  # TaskGroup preferred its child's error to our end
                raise asyncio.CancelledError from group
            first = _first(ended)
            if isinstance(first, LinkError):
                return first
            return LinkError(str(first), getattr(first, "hint", ""))
        return LinkError("closed")

    def _connection(self) -> Connection:
        broker = self._brokers.current
        death = Will(self._topics.presence, self._presence(online=False), broker.retains)
        call = Call(*(broker.url, self._client_id, broker.version, death), self._settings.session_s)
        return Connection(
            *(self._settings, self._clock, self._caller, call),
            *(self._on_message, self._tell.answered, self._known),
        )

    async def _serve(self, connection: Connection) -> None:
        """Everything that runs over one connection; raises LinkError at its end."""
        self._turns += 1  # the broker took it
        await self._introduce(connection)
        self.connected_since = self._clock.monotonic()
        self._tell.up(self._brokers, connection.terms)
        self._tell.undated(self._known.said() if connection.undated else None)
        log.info("connected to %s", self._brokers.current.url)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._uplink.run(connection))
                for talk in self._talks:
                    group.create_task(talk.run(connection))
                group.create_task(self._beat(connection))
                group.create_task(self._settle_in())
                if connection.undated:
                    group.create_task(self._date(connection.undated))
                if self._brokers.fallen_back:
                    group.create_task(self._prefer(connection))
                # Not a task of the group; see app.py.
                reason = await asyncio.shield(connection.ended)
                hint = connection.remedy
                hint = f"{hint}; {_TWINS}" if hint == PATIENCE else hint
                raise LinkError(f"the connection ended: {reason}", hint)
        except asyncio.CancelledError:
            connection.leave(self._topics.presence, self._presence(online=False))
            raise

    async def _settle_in(self) -> None:
        await asyncio.sleep(STABLE_S)
        self._tell.lasted()

    async def _date(self, undated: Dates) -> None:
        """Judge the broker's certificate once it is known what time it is."""
        await dates.judged(undated, self._known)
        self._tell.undated(None)

    async def _prefer(self, connection: Connection) -> None:
        """Look for the preferred broker, not with all devices at once; move when it answers."""
        while True:
            await asyncio.sleep(self._settings.prefer_s * self._jitter.uniform(0.5, 1.0))
            fault = await self._probe(self._brokers.preferred)
            if fault is None:
                connection.leave(self._topics.presence, self._presence(online=False))
                raise Preferred(f"{self._brokers.preferred.url} answers again: moving there")
            self._tell.fallback(self._brokers)

    async def _probe(self, broker: Broker) -> LinkError | None:
        """Whether it accepts a CONNECT; with an id of its own, to disturb nobody."""
        while True:
            # With its session: a broker may know us by our certificate, whatever we are called, and
            # what it keeps for us is not to go.
            name, session_s = f"{self._client_id}-probe", self._settings.session_s
            call = Call(broker.url, name, broker.version, session_s=session_s)
            try:
                async with Connection(
                    *(self._settings, self._clock, self._caller, call),
                    *(lambda *_: None, lambda *_: None, self._known),
                ):
                    return None
            except BadClientId as error:  # it is there, and may want the true id alone
                return None if broker.knows_us else error
            except LinkError as error:
                if not broker.failed(error):
                    return error

    async def _introduce(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await connection.subscribe(self._topics.ack)
                for topic in (topic for talk in self._talks for topic in talk.topics):
                    await self._subscribe_if_allowed(connection, topic)
                if self._settings.blobs_by == "put":
                    await connection.subscribe(self._topics.grant)
                birth = self._presence(online=True)
                self._pace.spent(len(birth))
                await connection.publish(self._topics.presence, birth, retain=True)
        except TimeoutError as error:
            raise LinkError(
                f"no answer to SUBSCRIBE in {self._settings.connect_timeout_s} s",
                "look into the broker's log",
            ) from error

    async def _subscribe_if_allowed(self, connection: Connection, topic: str) -> None:
        """A broker that lets nobody order anything still takes records: a condition tells."""
        try:
            await connection.subscribe(topic)
        except LinkError:
            if connection.ended.done():
                raise

    def _on_message(self, message: Message) -> None:
        topic = _folded(message.topic)
        for talk in self._talks:
            if topic in map(_folded, talk.topics):
                talk.heard(message)
                return
        if topic == _folded(self._topics.ack):
            self._uplink.heard(message.payload)
        elif topic == _folded(self._topics.grant):
            self._uplink.granted(message.payload)
        message.taken()

    async def _beat(self, connection: Connection) -> None:
        while True:
            beat = msgspec.json.encode(await self._heartbeat())
            try:
                await connection.publish(self._topics.heartbeat, beat)
            except TooLarge as error:
                self._tell.heartbeat(error)
            else:
                self._tell.heartbeat(None)
            await self._pace.next_beat(len(beat))

    def _presence(self, *, online: bool) -> bytes:
        return msgspec.json.encode(
            Presence(
                device=self._device,
                online=online,
                epoch=self._epoch(),
                version=self._holdfast,
                ack_from=self._settings.ack_from,
            )
        )


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _folded(topic: str) -> str:
    """RabbitMQ makes a slash of each dot. Some brokers send what was not asked for."""
    return topic.replace(".", "/")
