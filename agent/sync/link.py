"""The link: connects, says that it is there, lets the uplink send, and begins again when it ends.

MQTT 5 is asked for first, at each new connection; a broker that refuses it, or hangs up on it
twice, is asked for 3.1.1, and that is a condition. Between tries it waits, longer each time up to
`backoff_s_max`, by a random share so that a thousand devices do not come back in one second.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from agent.clock import Clock
from agent.config import Link as Settings
from agent.errors import LinkError, StoreError
from agent.health.conditions import Conditions
from agent.protocol.presence import Heartbeat, Presence
from agent.protocol.topics import Topics
from agent.sync.connection import Connection, Refused, TooLarge, Unspoken, Will
from agent.sync.uplink import Uplink

log = logging.getLogger("link")
UNSPOKEN_MAX = 2  # CONNECTs without an answer before the other protocol version is tried
STABLE_S = 30.0  # a connection that lasted this long begins the backoff anew
MQTT5, MQTT311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311


NOBODY = 16  # MQTT 5's reason code "No matching subscribers"
_TWINS = "if it ends again and again, another device may have this device_id"
_PATIENCE = "nothing is lost: records wait in the store; check the network and link.broker_url"


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
    ) -> None:
        """`version` is Holdfast's; `url` is the broker's, the embedded one's if none is named."""
        self.connected_since: float | None = None  # monotonic
        self._settings = settings
        self._url = url
        self._device = device
        self._epoch = epoch
        self._topics = Topics(settings.topic_prefix, device)
        self._uplink = uplink
        self._heartbeat = heartbeat
        self._conditions = conditions
        self._clock = clock
        self._jitter = jitter
        self._holdfast = version
        # The embedded broker is known not to speak 5, and does not even refuse it.
        self._best = MQTT5 if settings.broker_url else MQTT311
        self._version = self._best
        self._unspoken = 0

    def state(self) -> dict[str, Any]:
        """What `status` shows of the link."""
        now = self._clock.monotonic()
        since, acked = self.connected_since, self._uplink.acked_at
        return {
            "connected": since is not None,
            "broker": self._url,
            "embedded": self._settings.broker_url is None,
            "protocol": "5" if self._version == MQTT5 else "3.1.1",
            "ack_from": self._settings.ack_from,
            "connected_s": None if since is None else round(now - since, 1),
            "last_ack_age_s": None if acked is None else round(now - acked, 1),
        }

    async def run(self) -> None:
        """Connect, serve the connection to its end, wait, again."""
        backoff_s = self._settings.backoff_s_min
        self._conditions.hold("link_down", "link", "warning", "not connected yet", _PATIENCE)
        while True:
            began = self._clock.monotonic()
            reason, hint = await self._one_connection()
            lived_s = self._clock.monotonic() - began if self.connected_since else 0.0
            if self.connected_since:  # the next broker at this address may be a better one
                self._version = self._best
            self.connected_since = None
            self._conditions.hold("link_down", "link", "warning", reason, hint)
            if lived_s > STABLE_S:
                backoff_s = self._settings.backoff_s_min
            await asyncio.sleep(backoff_s * self._jitter.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, self._settings.backoff_s_max)

    async def _one_connection(self) -> tuple[str, str]:
        """Why it ended, and what to do."""
        try:
            async with self._connection() as connection:
                await self._serve(connection)
        except Unspoken as error:
            self._unspoken += 1
            if isinstance(error, Refused) or self._unspoken == UNSPOKEN_MAX:
                self._unspoken = 0
                self._version = MQTT311 if self._version == self._best else self._best
            return str(error), _PATIENCE
        except LinkError as error:
            return str(error), error.hint or _PATIENCE
        except ExceptionGroup as group:
            ended, fault = group.split((LinkError, StoreError))
            if fault or not ended:
                raise
            task = asyncio.current_task()
            if task and task.cancelling():  # TaskGroup preferred its child's error to our end
                raise asyncio.CancelledError from group
            first = _first(ended)
            return str(first), getattr(first, "hint", "") or _PATIENCE
        return "closed", _PATIENCE

    def _connection(self) -> Connection:
        death = Will(self._topics.presence, self._presence(online=False))
        client_id = f"holdfast-{self._device}"
        return Connection(
            *(self._settings, self._url, client_id, self._version, death),
            *(self._on_message, self._answered),
        )

    async def _serve(self, connection: Connection) -> None:
        """Everything that runs over one connection; raises LinkError at its end."""
        await self._introduce(connection)
        self.connected_since = self._clock.monotonic()
        self._unspoken = 0
        self._conditions.clear("link_down", "link")
        self._protocol_condition()
        log.info("connected to %s", self._url)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._uplink.run(connection))
                group.create_task(self._beat(connection))
                # Not a task of the group; see app.py.
                reason = await asyncio.shield(connection.ended)
                raise LinkError(f"the connection ended: {reason}", f"{_PATIENCE}; {_TWINS}")
        except asyncio.CancelledError:
            connection.leave(self._topics.presence, self._presence(online=False))
            raise

    async def _introduce(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await connection.subscribe(self._topics.ack)
                birth = self._presence(online=True)
                await connection.publish(self._topics.presence, birth, retain=True)
        except TimeoutError as error:
            raise LinkError(
                f"no answer to SUBSCRIBE in {self._settings.connect_timeout_s} s",
                "look into the broker's log",
            ) from error

    def _protocol_condition(self) -> None:
        if self._version == MQTT5 or self._settings.broker_url is None:
            self._conditions.clear("mqtt5_unavailable", "link")
            return  # of the embedded broker another condition tells
        self._conditions.hold(
            "mqtt5_unavailable",
            "link",
            "note",
            "the broker did not answer to MQTT 5; 3.1.1 tells no limits and no reasons",
            "nothing has to be done; a broker with MQTT 5 gives better diagnoses",
        )

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic == self._topics.ack:
            self._uplink.heard(payload)

    def _answered(self, topic: str, code: ReasonCode) -> None:
        door = topic.removeprefix(f"{self._topics.root}/")
        if not code.is_failure:
            self._conditions.clear("broker_refused", door)
        else:
            self._conditions.hold(
                "broker_refused",
                door,
                "warning",
                f"the broker refused a message: {code}",
                f"allow this device to use {topic} on the broker",
            )
        if self._settings.ack_from == "ingest" or not door.startswith("up/"):
            return
        if code.value != NOBODY:
            self._conditions.clear("nobody_listens", door)
        else:
            self._conditions.hold(
                "nobody_listens",
                door,
                "note",
                "the broker took records that nobody has subscribed to, and with ack_from: broker "
                "they count as delivered",
                f"start what reads {topic}, or set link.ack_from to ingest",
            )

    async def _beat(self, connection: Connection) -> None:
        while True:
            try:
                beat = msgspec.json.encode(await self._heartbeat())
                await connection.publish(self._topics.heartbeat, beat)
            except TooLarge as error:
                self._conditions.hold(
                    "heartbeat_too_large", "link", "warning", str(error), error.hint
                )
            else:
                self._conditions.clear("heartbeat_too_large", "link")
            await asyncio.sleep(self._settings.heartbeat_s)

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
