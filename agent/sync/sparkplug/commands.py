"""What a host may write, and which order that is (NCMD)."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from agent.errors import ProtocolError
from agent.sync.plant import orders
from agent.sync.sparkplug.payload import Metric, Payload, decode
from agent.sync.sparkplug.points import NOW, PAUSED, REBIRTH, REBOOT, RESTART
from agent.words import quoted

# By metric: what true orders, and false; "": nothing, for such a metric is false of itself.
WRITES: dict[str, tuple[str, str]] = {
    REBIRTH: ("", ""),
    REBOOT: (orders.REBOOT, ""),
    RESTART: (orders.RESTART, ""),
    PAUSED: (orders.PAUSE, orders.RESUME),
    NOW: (orders.NOW, ""),
}


class Write(NamedTuple):
    """An order, and the id that it has however often the same message comes ('': none)."""

    verb: str
    id: str


class Asked(NamedTuple):
    """What an NCMD asks for."""

    rebirth: bool
    writes: list[Write]


def asked(content: bytes, aliases: Mapping[int, str]) -> Asked:
    """All that it asks for, or nothing: raises ProtocolError, with what is wrong."""
    payload = decode(content)
    if not payload.metrics:
        raise ProtocolError("an NCMD without a metric")
    values = [_value(one, aliases) for one in payload.metrics]
    writes = [
        Write(verb, _id(payload, name, value))
        for name, value in values
        if (verb := WRITES[name][0 if value else 1])
    ]
    return Asked((REBIRTH, True) in values, writes)


def _value(metric: Metric, aliases: Mapping[int, str]) -> tuple[str, bool]:
    name = metric.name
    if not name:
        name = aliases.get(-1 if metric.alias is None else metric.alias, "")
    if name not in WRITES:
        said = quoted(name) or f"that with the alias {metric.alias}"
        raise ProtocolError(
            f"an NCMD writes {said}, which takes no writes", f"those that do: {', '.join(WRITES)}"
        )
    if not isinstance(metric.value, bool):
        raise ProtocolError(f"an NCMD writes no Boolean to {name}", "write true or false")
    return name, metric.value


def _id(payload: Payload, name: str, value: bool) -> str:
    """Of the host's own time, which is a label here and nothing else; without one, none."""
    if not payload.timestamp_ms:
        return ""
    said = f"{payload.timestamp_ms} {name} {value}".encode()
    return f"sparkplug-{hashlib.sha256(said).hexdigest()[:32]}"
