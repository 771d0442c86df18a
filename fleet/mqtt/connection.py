"""One life of one MQTT connection of an ingest, in the event loop.

A message is acknowledged to the broker by `take`, when it is stored, and not before; what was not
taken when the connection ends comes again, here or at another ingest.
"""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.errors import ConfigError, LinkError
from agent.forms import PACKET_BYTES_MAX
from agent.mqtt import Driver

MQTT5, MQTT311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
MISC_S = 1.0  # how often paho looks at its keep-alive
NAMED_S, NAMELESS_S = 3600, 10  # how long the broker keeps a session, unless told
ACKS_OUT_MAX = 1000  # published and not answered
FRAME_BYTES = 16  # of a PUBLISH beside its topic and its payload, at most


class Broker(Struct, frozen=True, kw_only=True):
    """The way to the broker, as the command line says it.

    The broker keeps what was sent to an ingest for `session_s` after its connection ended, and
    meanwhile many a broker goes on to give it its share. So an ingest without a `client_id`, which
    can come back only while its process lives, has a short one; one with a name a long one: it
    finds what came while it was away.
    """

    url: str
    prefix: str = "holdfast/v1"
    group: str = "holdfast"
    client_id: str = ""
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    in_flight_max: int = 200
    keepalive_s: int = 30
    connect_timeout_s: float = 10.0
    session_s: int | None = None

    @property
    def kept_s(self) -> int:
        """How long the broker keeps the session."""
        if self.session_s is not None:
            return self.session_s
        return NAMED_S if self.client_id else NAMELESS_S


class Message(Struct, frozen=True):
    """A message; `take` acknowledges it to the broker, as long as its connection lives.

    What came with `qos` 0 is not acknowledged, so the broker does not hold back the next.
    """

    topic: str
    payload: bytes
    take: Callable[[], None]
    qos: int = 1


class Unspoken(LinkError):
    """No good answer to CONNECT: perhaps the broker speaks another protocol version."""


class Connection:
    """Open with `async with`; `ended` resolves with the reason when it is over."""

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        version: MQTTProtocolVersion,
        on_message: Callable[[Message], None],
        *,
        fresh: bool,
    ) -> None:
        """`fresh`: forget what an earlier connection of this client left. Raises ConfigError."""
        self._broker = broker
        self._url = urlsplit(broker.url)
        self._version = version
        self._fresh = fresh
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.shares = version == MQTT5
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._room = asyncio.Semaphore(ACKS_OUT_MAX)
        self._packet_bytes_max = PACKET_BYTES_MAX
        self._misc: asyncio.TimerHandle | None = None
        try:
            self._client = self._made(client_id)
        except (OSError, UnicodeDecodeError) as error:
            name = getattr(error, "filename", None) or "a file of the connection"
            raise ConfigError(
                f"{name}: {error}",
                "check --password-file, --ca-file, --cert-file and --key-file",
            ) from error

    def _made(self, client_id: str) -> mqtt.Client:
        broker = self._broker
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self._version == MQTT5 else self._fresh,
            protocol=self._version,
            manual_ack=True,
        )
        client.max_inflight_messages_set(ACKS_OUT_MAX)
        if broker.username is not None:
            password = broker.password_file and Path(broker.password_file).read_text("utf-8")
            client.username_pw_set(broker.username, password and password.rstrip("\n"))
        if self._url.scheme == "mqtts":
            context = ssl.create_default_context(cafile=broker.ca_file)
            if broker.cert_file:
                context.load_cert_chain(broker.cert_file, broker.key_file)
            client.tls_set_context(context)
        client.connect_timeout = broker.connect_timeout_s
        return client

    async def __aenter__(self) -> Self:
        """Connect; raises LinkError, Unspoken where another protocol version might serve."""
        where = f"{self._url.hostname}:{self._port}"
        try:
            await asyncio.to_thread(self._connect)
        except (OSError, ValueError) as error:
            raise LinkError(f"{where}: {error}") from error
        if self._client.socket() is None:
            raise LinkError(f"{where}: the connection was reset at once")
        self._watch()
        try:
            async with asyncio.timeout(self._broker.connect_timeout_s):
                await self._accepted
        except TimeoutError as error:
            self._close("no answer to CONNECT")
            raise Unspoken(f"{where}: no answer to CONNECT") from error
        except (LinkError, asyncio.CancelledError):
            self._close("given up")
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Without a name, the session ends here: the broker may give what is left to others."""
        if not self.ended.done():
            properties = None
            if self._version == MQTT5 and not self._broker.client_id:
                properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
                properties.SessionExpiryInterval = 0
            self._client.disconnect(properties=properties)
            self._driver.flush()
        self._close("closed by us")

    @property
    def _port(self) -> int:
        return self._url.port or (8883 if self._url.scheme == "mqtts" else 1883)

    def _connect(self) -> None:
        properties = None
        if self._version == MQTT5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.ReceiveMaximum = self._broker.in_flight_max
            properties.MaximumPacketSize = PACKET_BYTES_MAX
            properties.SessionExpiryInterval = self._broker.kept_s
        self._client.connect(
            self._url.hostname or "localhost",
            self._port,
            self._broker.keepalive_s,
            clean_start=self._fresh if properties else mqtt.MQTT_CLEAN_START_FIRST_ONLY,
            properties=properties,
        )

    async def subscribe(self, topics: dict[str, int]) -> None:
        """Subscribe to topics with their QoS, and wait for the broker's word. Raises LinkError."""
        asked: Any = [
            (topic, SubscribeOptions(qos) if self._version == MQTT5 else qos)
            for topic, qos in topics.items()
        ]
        rc, mid = self._client.subscribe(asked)
        try:
            async with asyncio.timeout(self._broker.connect_timeout_s):
                await self._expected(rc, mid or 0)
        except TimeoutError as error:
            raise LinkError("no answer to SUBSCRIBE", "look into the broker's log") from error

    def room_bytes(self, topic: str) -> int:
        """The largest payload to this topic that the broker says it takes."""
        return self._packet_bytes_max - FRAME_BYTES - len(topic.encode())

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = True
    ) -> "asyncio.Future[None]":
        """With QoS 1; the future of the broker's answer. Raises LinkError, as it does.

        What is larger than the broker takes is not sent: it would end the connection.
        """
        if self.ended.done():
            raise LinkError(f"the connection ended: {self.ended.result()}")
        if len(payload) > self.room_bytes(topic):
            refused: asyncio.Future[None] = self._loop.create_future()
            refused.set_exception(LinkError(f"the broker takes no {len(payload)} bytes at {topic}"))
            return refused
        await self._room.acquire()
        info = self._client.publish(topic, payload, 1, retain=retain)
        answer = self._expected(info.rc, info.mid)
        answer.add_done_callback(lambda _: self._room.release())
        return answer

    def _expected(self, rc: MQTTErrorCode, mid: int) -> "asyncio.Future[None]":
        """The future of the broker's answer to packet `mid`."""
        future: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(lambda f: f.cancelled() or f.exception())  # seen, if nobody asks
        if self.ended.done():
            future.set_exception(LinkError(f"the connection ended: {self.ended.result()}"))
            return future
        self._answers[mid] = future
        if rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._close(mqtt.error_string(rc))
        return future

    def _on_answer(self, _c: Any, _u: Any, mid: int, codes: Any, _p: Any = None) -> None:
        answer = self._answers.pop(mid, None)
        if answer is None or answer.done():
            return
        failed = [one for one in (codes if isinstance(codes, list) else [codes]) if one.is_failure]
        if failed:
            answer.set_exception(LinkError(f"the broker refused: {failed[0]}", "check its ACL"))
        else:
            answer.set_result(None)

    def _on_connect(self, _c: Any, _u: Any, _f: Any, code: Any, properties: Any) -> None:
        if self._accepted.done():
            return
        if not code.is_failure:
            self.shares &= bool(getattr(properties, "SharedSubscriptionAvailable", 1))
            limit = getattr(properties, "ReceiveMaximum", ACKS_OUT_MAX)
            self._room = asyncio.Semaphore(min(limit, ACKS_OUT_MAX))
            most = getattr(properties, "MaximumPacketSize", PACKET_BYTES_MAX)
            self._packet_bytes_max = min(most, PACKET_BYTES_MAX)
            self._accepted.set_result(None)
        elif "protocol" in str(code).lower():
            self._accepted.set_exception(Unspoken(f"the broker refused: {code}"))
        else:
            hint = "check --username, --client-id (NATS wants no dot in it) and the broker's ACL"
            self._accepted.set_exception(LinkError(f"the broker refused: {code}", hint))

    def _on_disconnect(self, _c: Any, _u: Any, _f: Any, code: Any, _p: Any) -> None:
        if not self._accepted.done():
            self._accepted.set_exception(Unspoken(f"the broker hung up on CONNECT: {code}"))
        self._close(str(code))

    def _heard(self, _c: Any, _u: Any, message: mqtt.MQTTMessage) -> None:
        mid, qos = message.mid, message.qos
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = repr(message._topic)
        self._on_message(Message(topic, bytes(message.payload), lambda: self._take(mid, qos), qos))

    def _take(self, mid: int, qos: int) -> None:
        if not self.ended.done():
            self._client.ack(mid, qos)

    def _watch(self) -> None:
        """Let the loop drive paho from here on; while connecting, it worked in its thread."""
        self._driver = Driver(self._client, self._close)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._heard
        self._client.on_publish = self._on_answer
        self._client.on_subscribe = self._on_answer
        self._driver.begin()
        self._misc = self._loop.call_later(MISC_S, self._keep_alive)

    def _keep_alive(self) -> None:
        self._driver.drive(self._client.loop_misc)
        if not self.ended.done():
            self._misc = self._loop.call_later(MISC_S, self._keep_alive)

    def _close(self, reason: str) -> None:
        """The end, whoever brought it; everything that waits is told."""
        if self.ended.done():
            return
        self.ended.set_result(reason)
        if self._misc:
            self._misc.cancel()
        self._driver.drop()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(LinkError(f"the connection ended: {reason}"))
        self._answers.clear()
