"""A SCADA host, made of paho and the protobuf library: it judges what comes as a host would.

Each rule of the specification that it holds a message to has the id of the TCK's assertion beside
it. docs/sparkplug.md has them all.
"""

import json
import time
from typing import Any, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.outside import until
from tests.sync.sparkplug.rig import GROUP
from tests.sync.sparkplug.tahu import parsed

NODE = "dev"
REBIRTH = "Node Control/Rebirth"
DATATYPES = {
    3: "int_value",
    4: "long_value",
    10: "double_value",
    11: "boolean_value",
    12: "string_value",
}


class Message(NamedTuple):
    """One that came. `values` are by name, as the host knows them from the birth."""

    verb: str
    payload: Any
    values: dict[str, Any]

    @property
    def bdseq(self) -> int:
        return int(self.values["bdSeq"])


class Host:
    """Subscribed to all of Sparkplug's topics. `faults` is all that it has to complain of."""

    def __init__(self, port: int, host_id: str = "scada") -> None:
        self.host_id = host_id
        self.got: list[Message] = []
        self.faults: list[str] = []
        self.values: dict[str, Any] = {}  # what the host shows of the node now
        self.online = False
        self._aliases: dict[int, tuple[str, int]] = {}
        self._types: dict[str, int] = {}
        self._seq = -1
        self._bdseq = -1
        self._subscribed = False
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, f"host-{host_id}-{time.time_ns()}")
        self.client.on_subscribe = self._on_subscribe
        self.client.on_connect = lambda c, *_: c.subscribe("spBv1.0/#", 1)
        self.client.on_message = lambda _c, _u, message: self._take(message)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        until(lambda: self._subscribed, "the host is subscribed")

    def _on_subscribe(self, *_: object) -> None:
        self._subscribed = True

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def of(self, verb: str) -> list[Message]:
        return [one for one in list(self.got) if one.verb == verb]

    @property
    def births(self) -> list[Message]:
        return self.of("NBIRTH")

    @property
    def deaths(self) -> list[Message]:
        return self.of("NDEATH")

    def command(self, content: bytes, *, retain: bool = False) -> None:
        self.client.publish(f"spBv1.0/{GROUP}/NCMD/{NODE}", content, 0, retain)

    def state(self, *, online: bool, at_ms: int, host_id: str = "") -> None:
        said = json.dumps({"online": online, "timestamp": at_ms})
        self.client.publish(f"spBv1.0/STATE/{host_id or self.host_id}", said, 1, True)

    def alias(self, name: str) -> int:
        return next(alias for alias, (one, _) in self._aliases.items() if one == name)

    def rule(self, holds: bool, rule: str, what: object) -> None:
        if not holds:
            self.faults.append(f"{rule}: {what}")

    def _take(self, message: mqtt.MQTTMessage) -> None:
        parts = message.topic.split("/")
        if parts[1] == "STATE" or parts[2] == "NCMD":
            return
        verb = parts[2]
        self.rule(parts == ["spBv1.0", GROUP, verb, NODE], "topic-structure", message.topic)
        payload = parsed(message.payload)
        self.rule(not message.retain, f"payloads-{verb.lower()}-retain", "retained")
        age_s = abs(time.time() - payload.timestamp / 1000)
        self.rule(age_s < 3600, "payloads-timestamp-in-UTC", payload.timestamp)
        times = [one.timestamp for one in payload.metrics]
        self.rule(sorted(times) == times, "data-publish-nbirth-order", times)
        if verb == "NDEATH":
            self.rule(message.qos == 1, "payloads-ndeath-will-message-qos", message.qos)
            values = self._death(payload)
        elif verb == "NBIRTH":
            self.rule(message.qos == 0, "topics-nbirth-mqtt", message.qos)
            values = self._birth(payload)
        else:
            self.rule(verb == "NDATA" and message.qos == 0, "topics-ndata-mqtt", message.topic)
            values = self._data(payload)
        self.got.append(Message(verb, payload, values))

    def _death(self, payload: Any) -> dict[str, Any]:
        names = [one.name for one in payload.metrics]
        self.rule(names == ["bdSeq"], "topics-ndeath-payload", names)
        self.rule(not payload.HasField("seq"), "payloads-ndeath-seq", payload.seq)
        (one,) = payload.metrics
        self.rule(one.datatype == 4, "will-message-payload-bdSeq", one.datatype)
        if one.long_value == self._bdseq:
            self.online = False
        return {"bdSeq": one.long_value}

    def _birth(self, payload: Any) -> dict[str, Any]:
        self.rule(
            payload.HasField("seq") and payload.seq == 0, "topics-nbirth-seq-num", payload.seq
        )
        names = [one.name for one in payload.metrics]
        self.rule(len({one.lower() for one in names}) == len(names), "case-sensitivity", names)
        self._aliases, values = {}, {}
        for one in payload.metrics:
            field = DATATYPES[one.datatype]  # payloads-metric-datatype-req
            self.rule(one.HasField("name"), "payloads-alias-birth-requirement", one)
            self.rule(one.HasField("timestamp"), "payloads-name-birth-data-requirement", one)
            self.rule(
                one.WhichOneof("value") == (None if one.is_null else field),
                "operational-behavior-data-publish-nbirth-values",
                one,
            )
            aliased = one.HasField("alias") != (one.name == REBIRTH)
            self.rule(aliased, "payloads-alias-birth-requirement, rebirth-name-aliases", one.name)
            if one.HasField("alias"):
                self.rule(one.alias not in self._aliases, "payloads-alias-uniqueness", one.alias)
                self._aliases[one.alias] = (one.name, one.datatype)
            values[one.name] = None if one.is_null else self._signed(one, field)
        self.rule(values.get(REBIRTH) is False, "topics-nbirth-rebirth-metric", values.get(REBIRTH))
        self.rule("bdSeq" in values, "topics-nbirth-bdseq-included", names)
        self.values, self._seq, self._bdseq = values, 0, values["bdSeq"]
        self.online = True
        return dict(values)

    def _data(self, payload: Any) -> dict[str, Any]:
        if not self.online:
            self.rule(False, "payloads-ndata-order", "data before a birth")
            return {}
        self._seq = (self._seq + 1) % 256
        self.rule(payload.seq == self._seq, "payloads-sequence-num-incrementing", payload.seq)
        self._seq = payload.seq
        values = {}
        for one in payload.metrics:
            self.rule(not one.HasField("name"), "payloads-alias-data-cmd-requirement", one)
            self.rule(not one.HasField("datatype"), "payloads-metric-datatype-not-req", one)
            self.rule(one.HasField("timestamp"), "payloads-name-birth-data-requirement", one)
            self.rule(one.alias in self._aliases, "topics-nbirth-metric-reqs", one.alias)
            name, datatype = self._aliases[one.alias]
            field = DATATYPES[datatype]
            self.rule(one.WhichOneof("value") == (None if one.is_null else field), "type", one)
            values[name] = None if one.is_null else self._signed(one, field)
            self.rule(values[name] != self.values[name], "data-publish-nbirth-change", name)
        self.values |= values
        return values

    def _signed(self, one: Any, field: str) -> Any:
        value = getattr(one, field)
        bits = {"int_value": 32, "long_value": 64}.get(field)
        return value - (1 << bits) if bits and value >> bits - 1 else value
