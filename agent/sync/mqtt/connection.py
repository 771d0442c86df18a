"""One life of one MQTT connection, in the event loop.

It begins with a CONNECT that the broker accepted and ends once, for one reason; the next connection
is a new object, so nothing is left over from the last one. All that is done up to CONNECT is in
call.py, what is in flight in flight.py, whether the broker is still there in keepalive.py, what it
grants in terms.py.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.clock import Clock
from agent.config import Link as Settings
from agent.errors import LinkError
from agent.known_time import KnownTime
from agent.mqtt import Driver
from agent.sync.mqtt import reasons, tls
from agent.sync.mqtt.call import INCOMING_BYTES_MAX, QOS, Call, Caller, Will
from agent.sync.mqtt.dates import Dates
from agent.sync.mqtt.faults import PATIENCE, TooLarge, Unspoken
from agent.sync.mqtt.flight import Flight, settle
from agent.sync.mqtt.keepalive import KeepAlive, Verdict
from agent.sync.mqtt.terms import Terms, agreed

__all__ = ["Call", "Caller", "Connection", "Message", "TooLarge", "Will"]
WITH_WILL = 4  # MQTT 5: "Disconnect with Will Message"
LOOK_S_MAX = 1.0  # how often the keep-alive and what is in flight are looked at


class Message(NamedTuple):
    """What came; until it is `taken`, the broker keeps it, for the next connection.

    `retained`: the broker had kept it for whoever subscribes. `reply` is where MQTT 5 wants the
    answer, with `correlation` beside it.
    """

    topic: str
    payload: bytes
    retained: bool
    taken: Callable[[], None]
    reply: str | None
    correlation: bytes | None


class Connection:
    """Open with `async with`; `ended` resolves with the reason when it is over.

    Then `remedy` says what to do, and `code` what the broker's DISCONNECT said, if it sent one.
    `terms` are the broker's, from its CONNACK on. `undated` are the dates of its certificates that
    no clock could judge yet.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        caller: Caller,
        call: Call,
        on_message: Callable[[Message], None],
        on_answer: Callable[[str, ReasonCode], None],
        known: KnownTime,
    ) -> None:
        """`on_answer` hears of each message its topic and the broker's word, which MQTT 5 tells."""
        self._settings = settings
        self._clock = clock
        self._known = known
        self._caller = caller
        self._call = call
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.remedy = PATIENCE
        self.code: int | None = None
        self.undated: Dates | None = None
        self.terms = Terms(0, settings.payload_bytes_max, settings.keepalive_s)
        self.keepalive = KeepAlive(settings.keepalive_s, clock.monotonic())
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._flight = Flight(clock)
        self._looking: asyncio.TimerHandle | None = None
        self._on_message = on_message
        self._on_answer = on_answer

    @property
    def payload_bytes_max(self) -> int:
        """The narrower of our limit and the broker's."""
        return self.terms.payload_bytes_max

    @property
    def idle(self) -> bool:
        """Whether the broker has answered all that went out."""
        return self._flight.idle

    async def __aenter__(self) -> Self:
        """Connect; raises LinkError, Unspoken where another protocol version might serve."""
        placed = await self._caller.place(self._call)
        self._client, self._faults = placed.client, placed.faults
        self.undated = placed.undated
        if self._client.socket() is None:  # reset before CONNECT was out
            raise LinkError(
                f"{self._call.host}:{self._call.port}: the connection was reset at once"
            )
        self._watch()
        patience_s = self._settings.connect_timeout_s
        try:
            async with asyncio.timeout(patience_s):
                await self._accepted
        except TimeoutError as error:
            self._close("no answer to CONNECT")
            raise Unspoken(f"no answer to CONNECT in {patience_s} s") from error
        except (LinkError, asyncio.CancelledError):
            self._close("given up")
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.ended.done():
            self._client.disconnect(self._last_word())
            self._driver.flush()
        self._close("closed by us")

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, answers: bytes | None = None
    ) -> asyncio.Future[int]:
        """Send with QoS 1; returns once there is room in flight, with the future of the PUBACK's
        reason code (reasons.NOBODY: nobody reads it; MQTT 3.1.1 never says so).

        `answers` is the correlation data of what it answers (MQTT 5). Raises LinkError, as the
        future does, when the connection ends first.
        """
        self._fits(topic, payload)
        await self._room()
        properties = None
        if answers is not None and self._call.version == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = answers
        info = self._client.publish(topic, payload, QOS, retain and self.terms.retains, properties)
        return self._expected(info.rc, info.mid, topic)

    def leave(self, topic: str, payload: bytes, *, retain: bool = True, qos: int = 0) -> None:
        """Say a last, retained word, and wait for nobody: a half-open link must not hold us up."""
        if not self.ended.done():
            self._client.publish(topic, payload, qos, retain and self.terms.retains)

    def tell(self, topic: str, payload: bytes) -> None:
        """Send with QoS 0, which nobody answers. Raises LinkError where that is known to fail.

        Nothing bounds what waits to be written but the keep-alive: not for what comes fast.
        """
        self._fits(topic, payload)
        if self.ended.done():
            raise LinkError(f"the connection is over: {self.ended.result()}")
        self._client.publish(topic, payload, 0)

    def _fits(self, topic: str, payload: bytes) -> None:
        if len(payload) > self.payload_bytes_max:
            raise TooLarge(
                f"{topic}: {len(payload)} bytes are above the limit of {self.payload_bytes_max}",
                "raise link.payload_bytes_max if the broker allows it",
            )

    async def subscribe(self, topic: str) -> None:
        """Subscribe with QoS 1 and wait for the broker's word."""
        await self._room()
        rc, mid = self._client.subscribe(topic, QOS)
        await self._expected(rc, mid or 0, topic)

    async def _room(self) -> None:
        if self.ended.done():
            raise LinkError(f"the connection is over: {self.ended.result()}")
        await self._flight.room()

    def _expected(self, rc: MQTTErrorCode, mid: int, topic: str) -> asyncio.Future[int]:
        """The future of the broker's answer to packet `mid`."""
        future = self._flight.expect(mid, topic)
        if self.ended.done():  # while paho took it
            self._flight.end(LinkError(f"the connection ended: {self.ended.result()}"))
        elif rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._close(mqtt.error_string(rc))
        return future

    def _last_word(self) -> ReasonCode | None:
        """The reason of our DISCONNECT, where it is not the usual one."""
        will = self._call.will
        if self._call.version != MQTTProtocolVersion.MQTTv5 or not will or not will.always:
            return None
        return ReasonCode(PacketTypes.DISCONNECT, identifier=WITH_WILL)

    def _on_acknowledged(self, _c: Any, _u: Any, mid: int, codes: Any, _p: Any = None) -> None:
        code = codes[0] if isinstance(codes, list) else codes  # SUBACK has one for each topic
        if sent := self._flight.answered(mid):
            self._on_answer(sent.topic, code)
            settle(sent, code)

    def _on_connect(
        self, _c: Any, _u: Any, _f: Any, code: ReasonCode, properties: Properties | None
    ) -> None:
        if self._accepted.done():
            return
        if code.is_failure:
            self._accepted.set_exception(reasons.refusal(code, properties))
            return
        try:
            self.terms = agreed(self._settings, self._call.version, properties)
        except LinkError as error:
            self._accepted.set_exception(error)
            return
        self._flight.free = self.terms.in_flight_max
        self.keepalive = KeepAlive(self.terms.keepalive_s, self._clock.monotonic())
        self._accepted.set_result(None)

    def _on_disconnect(
        self, _c: Any, _u: Any, flags: Any, code: ReasonCode, properties: Properties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.code, self.remedy = code.value, reasons.hint(code) or PATIENCE
            reason = f"the broker ended it: {reasons.words(code, properties)}"
        else:
            reason = self._own_word(code)
        if not self._accepted.done():
            self._accepted.set_exception(self._unaccepted(reason))
        self._close(reason)

    def _own_word(self, code: ReasonCode) -> str:
        """What paho met, as its code alone says little."""
        fault = self._faults.last
        if isinstance(fault, OSError):
            known = None
            if not self._accepted.done():  # later, TLS was fine
                known = tls.explained(fault, self._settings, self._call.host, self._known)
            self.remedy = known.hint if known else self.remedy
            return str(known or fault)
        return "the broker hung up" if str(code) == "Unspecified error" else str(code)

    def _unaccepted(self, reason: str) -> LinkError:
        """The error of a CONNECT after which the broker hung up."""
        reason = f"no answer to CONNECT: {reason}"
        if isinstance(self._faults.last, ssl.SSLError):  # no version of MQTT helps
            return LinkError(reason, self.remedy)
        if self._call.encrypted:
            known = tls.suspected(reason, self._settings, self._known)
            return Unspoken(str(known), known.hint)
        return Unspoken(reason, self.remedy)

    def _watch(self) -> None:
        """Let the loop drive paho from here on; while connecting, it worked in its thread."""
        self._driver = Driver(
            self._client,
            self._close,
            received=lambda: self.keepalive.received(self._clock.monotonic()),
            sent=lambda: self.keepalive.sent(self._clock.monotonic()),
            incoming_bytes_max=INCOMING_BYTES_MAX,
        )
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = lambda _c, _u, m: self._on_message(self._incoming(m))
        self._client.on_publish = self._on_acknowledged
        self._client.on_subscribe = self._on_acknowledged
        self._driver.begin()
        self._look()

    def _incoming(self, message: Any) -> Message:
        def taken() -> None:
            if not self.ended.done():
                self._client.ack(message.mid, message.qos)

        properties = message.properties
        return Message(
            message.topic,
            bytes(message.payload),
            message.retain,
            taken,
            getattr(properties, "ResponseTopic", None),
            getattr(properties, "CorrelationData", None),
        )

    def _look(self) -> None:
        """Is the broker still there, and does it answer? paho's own keep-alive is never asked."""
        if self._accepted.done():
            verdict = self.keepalive.look(now := self._clock.monotonic())
            if verdict is Verdict.PING:
                self._driver.drive(self._client._send_pingreq)  # it has no other name
            elif verdict is Verdict.OVER:
                silent_s = now - self.keepalive.received_at
                self._close(f"nothing came from the broker in {silent_s:.1f} s, not even to a ping")
            waited_s = self._flight.overdue_s(self._settings.ack_timeout_s)
            if waited_s is not None:
                self._close(f"a message was not answered in {waited_s:.0f} s")
        if not self.ended.done():
            look_s = min(LOOK_S_MAX, self.keepalive.look_s)
            self._looking = self._loop.call_later(look_s, self._look)

    def _close(self, reason: str) -> None:
        """The end, whoever brought it; everything that waits is told."""
        if self.ended.done():
            return
        self.ended.set_result(reason)
        if self._looking:
            self._looking.cancel()
        self._driver.drop()
        self._flight.end(LinkError(f"the connection ended: {reason}", self.remedy))
