"""One life of one MQTT connection, with paho driven by the event loop.

It begins with a CONNECT that the broker accepted and ends once, for one reason; the next connection
is a new object, so nothing is left over from the last one.
"""

import asyncio
import contextlib
import logging
import ssl
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.config import Link as Settings
from agent.errors import LinkError
from agent.threads import apart

log = logging.getLogger("link")
QOS = 1
MISC_S = 1.0  # how often paho looks at its keep-alive
RECEIVE_MAXIMUM = 100
PACKET_ROOM = 1024  # of a packet for all but its payload
INCOMING_BYTES_MAX = 1 << 20  # of a packet from the broker: an ack is far smaller
OVERDUE = 10  # times `ack_timeout_s`: one message without an answer, though others had theirs
PAYLOAD_BYTES_MIN = 8192


class Will(Struct, frozen=True):
    """What the broker publishes, retained, when the device goes without a word."""

    topic: str
    payload: bytes


class TooLarge(LinkError):
    """A message above the broker's limit or ours; it was not sent, the connection goes on."""


class Unspoken(LinkError):
    """No answer to CONNECT, as of a broker that does not know the protocol version, or is ill."""


class Refused(Unspoken):
    """The broker said that it does not speak this protocol version: another one may serve."""


class Sent(Struct):
    """A message that the broker has not answered yet."""

    answer: asyncio.Future[None]
    topic: str
    at: float  # monotonic


class Connection:
    """Open with `async with`; `ended` resolves with the reason when it is over."""

    def __init__(
        self,
        settings: Settings,
        url: str,
        client_id: str,
        version: MQTTProtocolVersion,
        will: Will,
        on_message: Callable[[str, bytes], None],
        on_answer: Callable[[str, ReasonCode], None],
    ) -> None:
        """`on_answer` hears of each message its topic and the broker's word (MQTT 5 alone tells).

        Raises LinkError when a file that the settings name cannot be used.
        """
        self._settings = settings
        self._url = urlsplit(url)
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.payload_bytes_max = settings.payload_bytes_max
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._sent: dict[int, Sent] = {}  # by packet id, the oldest first
        self._answered_at = 0.0
        self._misc: asyncio.TimerHandle | None = None
        self._free = settings.in_flight_max
        self._queue: deque[asyncio.Future[None]] = deque()
        self._on_message = on_message
        self._on_answer = on_answer
        try:
            self._client = self._made(client_id, version, will)
        except OSError as error:  # ssl's errors are among them
            raise LinkError(
                f"{error.filename or settings.ca_file}: {error.strerror or error}",
                "check link.password_file and link.ca_file",
            ) from error
        except UnicodeDecodeError as error:
            raise LinkError(
                f"{settings.password_file}: not text in UTF-8", "write the password anew as UTF-8"
            ) from error

    def _made(self, client_id: str, version: MQTTProtocolVersion, will: Will) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if version == MQTTProtocolVersion.MQTTv5 else True,
            protocol=version,
        )
        client.max_inflight_messages_set(self._settings.in_flight_max)
        client.will_set(will.topic, will.payload, QOS, retain=True)
        if self._settings.username is not None:
            client.username_pw_set(self._settings.username, _password(self._settings))
        if self._url.scheme == "mqtts":
            client.tls_set_context(ssl.create_default_context(cafile=self._settings.ca_file))
        client.connect_timeout = self._settings.connect_timeout_s
        return client

    async def __aenter__(self) -> Self:
        """Connect; raises LinkError, Unspoken where another protocol version might serve."""
        settings = self._settings
        port = self._url.port or (8883 if self._url.scheme == "mqtts" else 1883)
        properties = None
        if self._client.protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = INCOMING_BYTES_MAX
        try:
            await apart(
                lambda: self._client.connect(
                    self._url.hostname or "localhost",
                    port,
                    settings.keepalive_s,
                    clean_start=True if properties else mqtt.MQTT_CLEAN_START_FIRST_ONLY,
                    properties=properties,
                )
            )
        except (OSError, ValueError) as error:
            raise LinkError(f"{self._url.hostname}:{port}: {error}") from error
        sock = self._client.socket()
        if sock is None:  # reset before CONNECT was out
            raise LinkError(f"{self._url.hostname}:{port}: the connection was reset at once")
        self._watch(sock)
        try:
            async with asyncio.timeout(settings.connect_timeout_s):
                await self._accepted
        except TimeoutError as error:
            self._close("no answer to CONNECT")
            raise Unspoken(f"no answer to CONNECT in {settings.connect_timeout_s} s") from error
        except (LinkError, asyncio.CancelledError):
            self._close("given up")
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.ended.done():
            self._client.disconnect()
            self._flush()
        self._close("closed by us")

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False
    ) -> asyncio.Future[None]:
        """Send with QoS 1; returns once there is room in flight, with the future of the PUBACK.

        Raises LinkError, as the future does, when the connection ends first.
        """
        if len(payload) > self.payload_bytes_max:
            raise TooLarge(
                f"{topic}: {len(payload)} bytes are above the limit of {self.payload_bytes_max}",
                "raise link.payload_bytes_max if the broker allows it",
            )
        await self._room()
        info = self._client.publish(topic, payload, QOS, retain)
        return self._expected(info.rc, info.mid, topic)

    def leave(self, topic: str, payload: bytes) -> None:
        """Say a last, retained word, and wait for nobody: a half-open link must not hold us up."""
        if not self.ended.done():
            self._client.publish(topic, payload, 0, retain=True)

    async def subscribe(self, topic: str) -> None:
        """Subscribe with QoS 1 and wait for the broker's word."""
        await self._room()
        rc, mid = self._client.subscribe(topic, QOS)
        await self._expected(rc, mid or 0, topic)

    def _expected(self, rc: MQTTErrorCode, mid: int, topic: str) -> asyncio.Future[None]:
        """The future of the broker's answer to packet `mid`."""
        future: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(lambda f: f.cancelled() or f.exception())  # seen, if nobody asks
        self._sent[mid] = Sent(future, topic, time.monotonic())
        if rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._close(mqtt.error_string(rc))
        return future

    async def _room(self) -> None:
        if self.ended.done():
            raise LinkError(f"the connection is over: {self.ended.result()}")
        if self._free > 0:
            self._free -= 1
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._queue.append(turn)
        await turn  # the place of one that was acknowledged

    def _on_acknowledged(self, _c: Any, _u: Any, mid: int, codes: Any, _p: Any = None) -> None:
        code = codes[0] if isinstance(codes, list) else codes  # SUBACK has one for each topic
        sent = self._sent.pop(mid, None)
        if sent is None:
            return  # of a message that we never sent
        self._answered_at = time.monotonic()
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        else:
            self._free += 1
        self._on_answer(sent.topic, code)
        if sent.answer.done():
            return
        if code.is_failure:
            sent.answer.set_exception(LinkError(f"the broker refused {sent.topic}: {code}"))
        else:
            sent.answer.set_result(None)

    def _on_connect(
        self, _c: Any, _u: Any, _f: Any, code: ReasonCode, properties: Properties | None
    ) -> None:
        if self._accepted.done():
            return
        if not code.is_failure:
            self._take_limits(properties)
        elif "protocol" in str(code).lower():
            self._accepted.set_exception(Refused(f"the broker refused: {code}"))
        else:
            self._accepted.set_exception(
                LinkError(f"the broker refused: {code}", "check link.username and the broker's ACL")
            )

    def _take_limits(self, properties: Properties | None) -> None:
        """The broker's bounds, where they are narrower than ours."""
        packet = getattr(properties, "MaximumPacketSize", self.payload_bytes_max + PACKET_ROOM)
        self._free = min(self._free, getattr(properties, "ReceiveMaximum", self._free))
        self.payload_bytes_max = min(self.payload_bytes_max, packet - PACKET_ROOM)
        if self.payload_bytes_max < PAYLOAD_BYTES_MIN:
            self._accepted.set_exception(
                LinkError(
                    f"the broker takes packets of {packet} bytes at most; "
                    f"{PAYLOAD_BYTES_MIN + PACKET_ROOM} are needed",
                    "raise the broker's packet limit",
                )
            )
        else:
            self._accepted.set_result(None)

    def _on_disconnect(
        self, _c: Any, _u: Any, _f: Any, code: ReasonCode, _p: Properties | None
    ) -> None:
        if not self._accepted.done():
            self._accepted.set_exception(Unspoken(f"the broker hung up on CONNECT: {code}"))
        self._close(str(code))

    def _watch(self, sock: Any) -> None:
        """Let the loop drive paho from here on; while connecting, it worked in its thread."""
        self._sock = sock
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = lambda _c, _u, m: self._on_message(m.topic, bytes(m.payload))
        self._client.on_publish = self._on_acknowledged
        self._client.on_subscribe = self._on_acknowledged
        self._client.on_socket_register_write = self._register_write
        self._client.on_socket_unregister_write = self._unregister_write
        self._client.on_socket_close = self._closing
        self._loop.add_reader(sock, self._read)
        if self._client.want_write():
            self._register_write(None, None, sock)
        self._misc = self._loop.call_later(MISC_S, self._keep_alive)

    def _drive(self, step: Callable[[], object]) -> None:
        """Let paho work. A packet that it cannot take apart would come up again and again."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - whatever a broken packet makes paho raise
            self._close(f"the broker sent what cannot be read: {error!r}")

    def _read(self) -> None:
        self._drive(self._client.loop_read)
        while isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            self._drive(self._client.loop_read)
        # An MQTT 3.1.1 broker was not told our bound.
        if self._client._in_packet["to_process"] > INCOMING_BYTES_MAX:
            self._close(f"the broker sends more than {INCOMING_BYTES_MAX} bytes in one packet")

    def _register_write(self, _c: Any, _u: Any, sock: Any) -> None:
        self._loop.add_writer(sock, self._write)

    def _unregister_write(self, _c: Any, _u: Any, sock: Any) -> None:
        self._loop.remove_writer(sock)

    def _closing(self, _c: Any, _u: Any, sock: Any) -> None:
        self._loop.remove_reader(sock)

    def _write(self) -> None:
        self._drive(self._client.loop_write)

    def _keep_alive(self) -> None:
        self._drive(self._client.loop_misc)
        if self._sent:
            now, oldest = time.monotonic(), next(iter(self._sent.values())).at
            patience_s = self._settings.ack_timeout_s
            if now - max(oldest, self._answered_at) > patience_s or (
                now - oldest > OVERDUE * patience_s
            ):
                self._close(f"a message was not answered in {now - oldest:.0f} s")
        if not self.ended.done():
            self._misc = self._loop.call_later(MISC_S, self._keep_alive)

    def _flush(self) -> None:
        with contextlib.suppress(OSError):  # it is going down anyway
            self._client.loop_write()

    def _close(self, reason: str) -> None:
        """The end, whoever brought it; everything that waits is told."""
        if self.ended.done():
            return
        self.ended.set_result(reason)
        if self._misc:
            self._misc.cancel()
        self._loop.call_soon(self._drop_socket)  # not now: paho may be in the middle of it
        error = LinkError(f"the connection ended: {reason}")
        for future in [*(sent.answer for sent in self._sent.values()), *self._queue]:
            if not future.done():
                future.set_exception(error)
        self._sent.clear()

    def _drop_socket(self) -> None:
        sock = self._client.socket()  # None once paho has closed it
        if sock is not None:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            self._client.on_socket_close = self._client.on_socket_unregister_write = None
            sock.close()


def _password(settings: Settings) -> str | None:
    if settings.password_file is None:
        return None
    return Path(settings.password_file).read_text(encoding="utf-8").rstrip("\n")
