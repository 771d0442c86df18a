"""The broker's reason codes in words: what happened, and what to do about it."""

from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import LinkError
from agent.sync.mqtt.faults import PATIENCE, BadClientId, NoRetain, Refused
from agent.words import quoted

NOBODY = 16  # "No matching subscribers"
VERSION, CLIENT_ID, RETAIN, QOS, TAKEN_OVER, USE_ANOTHER, MOVED = 132, 133, 154, 155, 142, 156, 157
_LOGIN = "check link.username, link.password_file, link.cert_file and the broker's ACL"
_ELSEWHERE = "set link.broker_url to the server that the broker's operator names"
_HINTS = {
    VERSION: "it is asked for MQTT 3.1.1 and for 5; Holdfast speaks no other version",
    CLIENT_ID: "set link.client_id to what the broker expects of this device; NATS wants no dot in "
    "it, which the default has where device_id has one",
    134: _LOGIN,
    135: _LOGIN,
    137: "the broker has too much to do; the device tries again, more and more slowly",
    138: "the broker's operator has banned this device: ask there",
    139: "the broker is being stopped; the device tries again",
    140: "the broker wants a way to authenticate that Holdfast does not speak",
    141: "the line is too slow or was cut for a while; raise link.keepalive_s if it is slow",
    TAKEN_OVER: "give each device a device_id, or a link.client_id, of its own",
    147: "lower link.in_flight_max",
    149: "lower link.payload_bytes_max, or raise the broker's packet limit",
    150: "the broker bounds the rate of messages; lower link.rate_bytes_per_s_max",
    151: "the broker's quota for this device is used up: ask its operator",
    152: "the broker's operator ended it: ask there",
    QOS: "Holdfast needs QoS 1: without it nobody says that a message has arrived",
    USE_ANOTHER: _ELSEWHERE,
    MOVED: _ELSEWHERE,
    159: "too many devices connect at once; the device tries again, more and more slowly",
}


def words(code: ReasonCode, properties: Properties | None) -> str:
    """What the broker said, in one phrase."""
    said = str(code)
    if code.value == TAKEN_OVER:
        said += ", another connection with the same client id was made"
    if server := getattr(properties, "ServerReference", ""):
        said += f", it names {quoted(server)}"
    if reason := getattr(properties, "ReasonString", ""):
        said += f" ({quoted(reason)})"
    return said


def hint(code: ReasonCode) -> str:
    """What to do about it, "" where there is nothing particular."""
    return _HINTS.get(code.value, "")


def refusal(code: ReasonCode, properties: Properties | None) -> LinkError:
    """The error of a CONNECT that was answered with a refusal."""
    message = f"the broker refused: {words(code, properties)}"
    kinds = {VERSION: Refused, RETAIN: NoRetain, CLIENT_ID: BadClientId}
    return kinds.get(code.value, LinkError)(message, hint(code) or PATIENCE)
