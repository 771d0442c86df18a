"""Calling a broker: everything up to a CONNECT that is on its way. It blocks: names, TCP, TLS.

Limits: a call has WHOLE times `connect_timeout_s`, whatever takes it so long. One that is not back
by then is left to its thread, and reaches nobody any more; of these there are THREADS_MAX at most.
"""

import asyncio
import logging
import ssl
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.clock import Clock
from agent.config import Link as Settings
from agent.errors import LinkError
from agent.known_time import KnownTime
from agent.sync.mqtt import dates, tls
from agent.sync.mqtt.dates import Dates
from agent.sync.mqtt.faults import PATIENCE
from agent.sync.mqtt.reach import Client
from agent.threads import apart

WHOLE = 2.0
THREADS_MAX = 8
_SLOW = f"{PATIENCE}; a name server, or the disk with the link's certificates, may not answer"
QOS = 1
RECEIVE_MAXIMUM = 100
INCOMING_BYTES_MAX = 1 << 20  # of a packet from the broker: an ack is far smaller


class Will(Struct, frozen=True):
    """What the broker publishes when the device goes without a word.

    `always`: also when it goes with one, where MQTT 5 has a word for that.
    """

    topic: str
    payload: bytes
    retain: bool = True
    always: bool = False


class Call(Struct, frozen=True):
    """Whom to call, as whom, and in which version of MQTT."""

    url: str
    client_id: str
    version: MQTTProtocolVersion
    will: Will | None = None
    session_s: int = 0  # for which the broker keeps what comes for us while we are away

    @property
    def host(self) -> str:
        """The name or address."""
        return urlsplit(self.url).hostname or "localhost"

    @property
    def port(self) -> int:
        """The port, the usual one if the address names none."""
        return urlsplit(self.url).port or (8883 if self.encrypted else 1883)

    @property
    def encrypted(self) -> bool:
        """Whether it goes over TLS."""
        return urlsplit(self.url).scheme == "mqtts"


class Faults(logging.Logger):
    """Keeps the last error that paho met: it tells that to a logger alone."""

    last: object = None

    def log(self, level: int, msg: object, *args: object, **_: Any) -> None:
        """As paho calls it."""
        if level >= logging.ERROR:
            self.last = args[-1] if args else msg


class Placed(Struct):
    """A call that was placed: its CONNECT goes out, nothing was read yet.

    `undated` are those of the broker's certificates, where no clock could judge them.
    """

    client: mqtt.Client
    faults: Faults
    undated: Dates | None = None


class Caller:
    """Places one call after the other, each in a thread of its own."""

    def __init__(self, settings: Settings, clock: Clock, known: KnownTime) -> None:
        self.whole_s = WHOLE * settings.connect_timeout_s
        self.placed = 0
        self._settings = settings
        self._clock = clock
        self._known = known
        self._threads = threading.BoundedSemaphore(THREADS_MAX)

    async def place(self, call: Call) -> Placed:
        """Reach the broker; raises LinkError, also for a file of the settings that cannot be used,
        and where it is not reached within `whole_s`."""
        if not self._threads.acquire(blocking=False):
            raise LinkError(
                f"{call.host}:{call.port}: {THREADS_MAX} calls before this one are not back yet",
                _SLOW,
            )
        until_s = self._clock.monotonic() + self.whole_s
        try:
            async with asyncio.timeout(self.whole_s):
                placed = await apart(lambda: self._place(call, until_s))
        except TimeoutError as error:
            raise LinkError(
                f"{call.host}:{call.port}: not reached in {self.whole_s} s", _SLOW
            ) from error
        self.placed += 1
        return placed

    def _place(self, call: Call, until_s: float) -> Placed:
        try:
            return place(call, self._settings, self._clock, self._known, until_s)
        finally:
            self._threads.release()


def place(call: Call, settings: Settings, clock: Clock, known: KnownTime, until_s: float) -> Placed:
    """Reach the broker before `until_s` (monotonic), but that nothing bounds how long its name
    takes. Raises LinkError."""
    sure = known.sure
    client = _client(call, settings, sure=sure)
    client.clock, client.until_s = clock, until_s
    placed, properties = Placed(client, Faults("paho")), None
    client.enable_logger(placed.faults)

    def look(sock: ssl.SSLSocket) -> None:
        if not sure:
            placed.undated = dates.of(sock)
            dates.judge(placed.undated, known)

    client.on_encrypted = look
    if call.version == MQTTProtocolVersion.MQTTv5:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = INCOMING_BYTES_MAX
        if call.session_s:
            properties.SessionExpiryInterval = call.session_s
    try:
        client.connect(
            call.host,
            call.port,
            settings.keepalive_s,
            clean_start=not call.session_s if properties else mqtt.MQTT_CLEAN_START_FIRST_ONLY,
            properties=properties,
        )
    except OSError as error:
        found = tls.explained(error, settings, call.host, known)
        hint = found.hint if found else ""
        raise LinkError(f"{call.host}:{call.port}: {found or error}", hint) from error
    except LinkError as error:
        raise LinkError(f"{call.host}:{call.port}: {error}", error.hint) from error
    except ValueError as error:
        raise LinkError(f"{call.host}:{call.port}: {error}") from error
    return placed


def _client(call: Call, settings: Settings, *, sure: bool) -> Client:
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=call.client_id,
        clean_session=None if call.version == MQTTProtocolVersion.MQTTv5 else not call.session_s,
        protocol=call.version,
        manual_ack=True,  # once it is kept
        reconnect_on_failure=False,  # else it asks for MQTT 3.1, and blocks the loop meanwhile
    )
    client.max_inflight_messages_set(settings.in_flight_max)
    if call.will:
        client.will_set(call.will.topic, call.will.payload, QOS, call.will.retain)
    if settings.username is not None:
        client.username_pw_set(settings.username, _password(settings.password_file))
    if call.encrypted:
        client.tls_set_context(tls.context(settings, dated=sure))
    return client


def _password(path: str | None) -> str | None:
    """The password or token, as the file says now."""
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise LinkError(
            f"link.password_file: {path}: {error.strerror or error}", "check link.password_file"
        ) from error
    except UnicodeDecodeError as error:
        raise LinkError(
            f"link.password_file: {path}: not text in UTF-8", "write the password anew as UTF-8"
        ) from error
