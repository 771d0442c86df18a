"""The ingest: what devices publish goes into the database, and acks go back from there.

A message is PUBACKed when its transaction is committed. While one transaction runs, the next
gathers (waiting.py); no timer, so a lone message waits for nobody. Then each device that was
touched is told what the database holds of it, at most each `ack_s`, the last state always. Any
number of ingests of one group share the work, without a word between them: what two of them do
twice, the database keeps once. Who asks where to put a blob is answered beside that (asks.py).

Limits  : `in_flight_max` messages wait here, the broker keeps the others; those with QoS 0 it does
          not keep, and they are left out while too many wait (waiting.py).
Recovery: the database is away: nothing is PUBACKed, the same transaction is tried until it goes
          through. The broker is away: connect again; what was not PUBACKed comes again.
"""

import asyncio
import logging
import random
import secrets
from contextlib import suppress
from typing import Any

from agent.clock import Clock
from agent.errors import ConfigError, LinkError, ProtocolError, StoreError
from agent.protocol.envelope import from_json
from agent.protocol.presence import Heartbeat, Presence
from fleet.mqtt.asks import Asks
from fleet.mqtt.beats import Beats
from fleet.mqtt.connection import MQTT5, MQTT311, Broker, Connection, Message, Unspoken
from fleet.mqtt.metrics import Metrics
from fleet.mqtt.replies import Replies
from fleet.mqtt.s3 import Bucket
from fleet.mqtt.waiting import Waiting
from fleet.store.arrivals import Arrival, Brought, Refusal, door_of, plain, take_apart
from fleet.store.cloud import Cloud, Verdict, device_of

log = logging.getLogger("ingest")
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.2, 15.0
STOP_S = 10.0  # how long the end waits for the database and the broker
UNSPOKEN_MAX = 2  # CONNECTs without an answer before the other protocol version is tried
CENSUS_S = 60.0
LASTED_S = 10.0  # a connection that did was a good one
LEFT_OUT_TOLD_S = 60.0
What = Brought | Refusal | Presence | None  # of a message: None is an ask
DOORS = ("up", "blob", "blob-ask", "presence", "heartbeat")


class Ingest:
    """One process's ingest; `run` it until `stop` was called."""

    def __init__(
        self,
        cloud: Cloud,
        broker: Broker,
        metrics: Metrics,
        clock: Clock,
        jitter: random.Random,
        *,
        ack_s: float = 0.1,
        heartbeat_s: float = 10.0,
        bucket: Bucket | None = None,
    ) -> None:
        """A device's heartbeat is written each `heartbeat_s` at most; blobs may go to `bucket`."""
        self._cloud = cloud
        self._broker = broker
        self._metrics = metrics
        self._clock = clock
        self._jitter = jitter
        self._replies = Replies(cloud, metrics, ack_s)
        self._asks = Asks(cloud, metrics, bucket, self._put)
        self._beats = Beats(cloud, metrics, heartbeat_s)
        self._client_id = broker.client_id or f"holdfast-ingest-{secrets.token_hex(8)}"
        self._version, self._unspoken = MQTT5, 0
        self._met = False  # this client has had a connection: its session may wait for it
        self._waiting: Waiting[What] = Waiting(self._opened)
        self._more = asyncio.Event()
        self._stopping = asyncio.Event()
        self._connection: Connection | None = None
        self._connected_at = self._tell_at = clock.monotonic()

    def stop(self) -> None:
        """Take nothing more, store what is here, say so, and end."""
        self._stopping.set()
        self._more.set()

    async def run(self) -> None:
        """Until `stop`. Raises ConfigError."""
        parts = [
            asyncio.create_task(part)
            for part in (self._store(), self._connect(), self._beats.run(), self._count())
        ]
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([*parts, stopped], return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                await self._finish(parts[0])
            for part in parts:
                if part.done():
                    part.result()
        finally:
            for task in (*parts, stopped):
                task.cancel()
            await asyncio.gather(*parts, stopped, return_exceptions=True)

    async def _finish(self, storing: "asyncio.Task[None]") -> None:
        """Let the last transaction end, and its acks go out."""
        with suppress(TimeoutError, LinkError, StoreError):
            async with asyncio.timeout(STOP_S):
                await asyncio.shield(storing)
                await self._beats.write()
                if self._connection:
                    await self._replies.publish(self._connection)
                return
        log.warning("ended after %.0f s with work undone: it will come again", STOP_S)

    # The broker

    async def _connect(self) -> None:
        """Connect, serve the connection to its end, wait, again."""
        backoff_s = BACKOFF_S_MIN
        while True:
            try:
                await self._one_connection()
            except LinkError as error:
                log.warning("%s%s", error, f" ({error.hint})" if error.hint else "")
            lasted_s = self._clock.monotonic() - self._connected_at
            if self._connection is not None and lasted_s >= LASTED_S:
                backoff_s = BACKOFF_S_MIN
            self._connection = None
            self._metrics.connected.set(0)
            await asyncio.sleep(backoff_s * self._jitter.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)

    async def _one_connection(self) -> None:
        # 3.1.1 knows no end of a session: one without a name would stay with the broker for ever.
        resumes = self._met and self._version == MQTT5
        fresh = not self._broker.client_id and not resumes
        connection = self._made(fresh=fresh)
        try:
            await connection.__aenter__()
        except Unspoken:
            self._unspoken += 1
            if self._version == MQTT311 or self._unspoken >= UNSPOKEN_MAX:
                self._unspoken = 0
                self._version = MQTT311 if self._version == MQTT5 else MQTT5
            raise
        try:
            await self._serve(connection)
        finally:
            await connection.__aexit__()

    def _made(self, *, fresh: bool) -> Connection:
        """Raises ConfigError at the start; later, a file that is being changed is there again."""
        try:
            return Connection(
                self._broker, self._client_id, self._version, self._heard, fresh=fresh
            )
        except ConfigError as error:
            if not self._met:
                raise
            raise LinkError(str(error), error.hint) from error

    async def _serve(self, connection: Connection) -> None:
        self._met, self._unspoken = True, 0
        root = f"{self._broker.prefix}/+"
        share = f"$share/{self._broker.group}/" if connection.shares else ""
        doors = {f"{root}/up/#": 1, f"{root}/blob/#": 1, f"{root}/presence": 1}
        doors[f"{root}/blob-ask"] = 1
        await connection.subscribe(
            {f"{share}{door}": qos for door, qos in {**doors, f"{root}/heartbeat": 0}.items()}
        )
        self._connection, self._connected_at = connection, self._clock.monotonic()
        self._metrics.connected.set(1)
        self._metrics.shared.set(connection.shares)
        log.info("connected to %s as %s", self._broker.url, self._client_id)
        if not connection.shares:
            log.warning(
                "the broker does not share subscriptions (MQTT 5): each ingest gets all messages; "
                "run one only, a second adds work and no speed"
            )
        answering = (self._replies.run(connection), self._asks.run(connection))
        tasks = [asyncio.create_task(one) for one in answering]
        try:
            ends: list[asyncio.Future[Any]] = [*tasks, connection.ended]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            raise LinkError(f"the connection ended: {connection.ended.result()}")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _heard(self, message: Message) -> None:
        """A message came. Once the end has begun, it is left to those who go on."""
        if self._stopping.is_set():
            return
        door = self._door(message)
        self._metrics.messages.labels(door).inc()
        self._metrics.message_bytes.labels(door).inc(len(message.payload))
        if door == "heartbeat":
            self._heard_beat(message)
            return
        if self._asks.takes(message):
            self._asks.heard(message)  # at once; it is PUBACKed in its turn, as all others
        self._wait(message)

    def _door(self, message: Message) -> str:
        door = door_of(self._broker.prefix, message.topic)
        return door if door in DOORS else "other"

    def _heard_beat(self, message: Message) -> None:
        """Only the newest of a device counts, so it may wait, and need not be PUBACKed late."""
        try:
            beat = from_json(message.payload, Heartbeat)
            if beat.device != device_of(self._broker.prefix, message.topic):
                raise ProtocolError(f"it says it is of {beat.device!r}")
        except ProtocolError:
            self._wait(message)  # to be refused in due form
            return
        self._beats.add(beat)
        message.take()

    def _wait(self, message: Message) -> None:
        if message.qos == 0 and self._waiting.full:  # a device sends with QoS 1: it is none of ours
            self._leave_out(message)
            return
        self._waiting.add(message)
        self._metrics.waiting.set(len(self._waiting))
        self._more.set()

    def _leave_out(self, message: Message) -> None:
        self._metrics.left_out.inc()
        if self._clock.monotonic() >= self._tell_at:
            self._tell_at = self._clock.monotonic() + LEFT_OUT_TOLD_S
            log.warning(
                "too many messages wait, and those with QoS 0 are left out, now one at %s; "
                "devices send with QoS 1",
                plain(message.topic),
            )

    def _opened(self, message: Message) -> tuple[What, int]:
        """What is in a message, and its bytes; nothing in an ask, which is answered beside this."""
        presence = self._presence(message)
        if presence or self._asks.takes(message):
            return presence, len(message.payload)
        found = take_apart(self._broker.prefix, Arrival(message.topic, message.payload))
        return found, found.size_bytes

    # The database

    async def _store(self) -> None:
        """Transaction after transaction, each with all that waits; ends with the last."""
        while True:
            while not len(self._waiting):
                if self._stopping.is_set():
                    return
                self._more.clear()
                await self._more.wait()
            gathered = self._waiting.taken()
            await self._committed([one.what for one in gathered])
            for one in gathered:
                one.message.take()
            self._metrics.waiting.set(len(self._waiting))

    async def _committed(self, gathered: list[What]) -> None:
        """Bring it to the database, as often as that takes."""
        presences = [one for one in gathered if isinstance(one, Presence)]
        arrivals = [one for one in gathered if isinstance(one, Brought | Refusal)]
        backoff_s = BACKOFF_S_MIN
        while True:
            began = self._clock.monotonic()
            try:
                verdict = await self._cloud.keep(arrivals)
                if presences:
                    await self._cloud.note(presences, {})
                break
            except StoreError as error:
                self._metrics.faults.inc()
                log.error(
                    "%s (%s); trying again, nothing is PUBACKed until then", error, error.hint
                )
            await asyncio.sleep(backoff_s * self._jitter.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)
        self._metrics.commit.observe(self._clock.monotonic() - began)
        self._tell(verdict)
        self._replies.touch({name[0] for name in verdict.streams})
        self._replies.touch({presence.device for presence in presences if presence.online})

    def _presence(self, message: Message) -> Presence | None:
        """A presence in order; what is not is brought to the database to be refused."""
        if self._door(message) != "presence":
            return None
        with suppress(ProtocolError):
            presence = from_json(message.payload, Presence)
            if presence.device == device_of(self._broker.prefix, message.topic):
                return presence
        return None

    def _put(self, device: str, verdict: Verdict) -> None:
        """It is stored that a device's blob lies in the object store."""
        self._tell(verdict)
        self._replies.touch([device])

    def _tell(self, verdict: Verdict) -> None:
        self._metrics.records.labels("new").inc(verdict.records_new)
        self._metrics.records.labels("known").inc(verdict.records_known)
        self._metrics.blobs.inc(verdict.blobs_done)
        self._metrics.refused.inc(verdict.refused)
        for lag_s in verdict.lags_s:
            self._metrics.lag.observe(lag_s)

    async def _count(self) -> None:
        """Now and then, count what the metrics tell of the whole database."""
        while True:
            try:
                census = await self._cloud.census()
            except StoreError as error:
                self._metrics.faults.inc()
                log.error("%s (%s); not counted", error, error.hint)
            else:
                for state, count in census.devices.items():
                    self._metrics.devices.labels(state).set(count)
                self._metrics.gaps.labels("ranges").set(census.gaps)
                self._metrics.gaps.labels("records").set(census.missing)
            await asyncio.sleep(CENSUS_S)
