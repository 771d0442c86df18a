"""What a broker grants, read from its answer to CONNECT, and what it lacks."""

from msgspec import Struct
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.properties import Properties

from agent.config import Link as Settings
from agent.errors import LinkError
from agent.forms import PACKET_ROOM_BYTES, PAYLOAD_BYTES_MIN


class Terms(Struct, frozen=True):
    """The narrower of our bounds and the broker's.

    `lost` says of each feature of MQTT 5 that is not there what it costs; `retains`: whether the
    broker keeps retained messages.
    """

    in_flight_max: int
    payload_bytes_max: int
    keepalive_s: int
    retains: bool = True
    lost: tuple[str, ...] = ()


_OLD = (
    "MQTT 3.1.1 tells no reason for an end and no limits: too large a message ends the connection",
    "MQTT 3.1.1 tells neither that a message was refused nor that nobody reads it: with "
    "ack_from: broker such a message counts as delivered",
)
_NO_RETAIN = (
    "no retained messages: an ack that comes while the device is away is lost, and what it would "
    "have settled is sent again; presence is told to those alone who listen in that moment"
)
_NO_SHARING = "no shared subscriptions: only one ingest can read from this broker"


def agreed(
    settings: Settings, version: MQTTProtocolVersion, properties: Properties | None
) -> Terms:
    """The terms of this connection; raises LinkError when Holdfast cannot work with them."""
    ours = Terms(settings.in_flight_max, settings.payload_bytes_max, settings.keepalive_s)
    if version != MQTTProtocolVersion.MQTTv5:
        return Terms(ours.in_flight_max, ours.payload_bytes_max, ours.keepalive_s, lost=_OLD)

    def granted(name: str, otherwise: int) -> int:
        return int(getattr(properties, name, otherwise))

    if granted("MaximumQoS", 1) < 1:
        raise LinkError(
            "the broker takes QoS 0 alone: it never says that a message has arrived",
            "allow QoS 1 on the broker, or use another one",
        )
    packet_bytes = granted("MaximumPacketSize", ours.payload_bytes_max + PACKET_ROOM_BYTES)
    payload_bytes = min(ours.payload_bytes_max, packet_bytes - PACKET_ROOM_BYTES)
    if payload_bytes < PAYLOAD_BYTES_MIN:
        raise LinkError(
            f"the broker takes packets of {packet_bytes} bytes at most; "
            f"{PAYLOAD_BYTES_MIN + PACKET_ROOM_BYTES} are needed",
            "raise the broker's packet limit",
        )
    retains = bool(granted("RetainAvailable", 1))
    shares = bool(granted("SharedSubscriptionAvailable", 1))
    # 0: the broker has no limit; what we want to notice stays as we set it.
    keepalive_s = granted("ServerKeepAlive", 0) or ours.keepalive_s
    return Terms(
        min(ours.in_flight_max, granted("ReceiveMaximum", ours.in_flight_max)),
        payload_bytes,
        min(ours.keepalive_s, keepalive_s),
        retains,
        (*(() if retains else (_NO_RETAIN,)), *(() if shares else (_NO_SHARING,))),
    )
