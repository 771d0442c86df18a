"""Somebody who gives orders to a device over a real broker."""

import random
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.protocol.commands import Result
from tests.outside import until

ROOT = "holdfast/v1/dev"


class Controller:
    """Somebody who gives orders, in MQTT 5, and hears results."""

    def __init__(self, port: int, *topics: str, root: str = ROOT) -> None:
        self._root = root
        self.results: list[tuple[str, Result, bytes]] = []
        self._subscribed = False
        self._topics = topics
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            f"controller-{random.randrange(10**9)}",
            protocol=MQTTProtocolVersion.MQTTv5,
        )
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda *_: setattr(self, "_subscribed", True)
        self.client.on_message = self._on_message
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        until(lambda: self._subscribed or not topics, "the controller is subscribed")

    def _on_connect(self, client: mqtt.Client, *_: object) -> None:
        if self._topics:
            client.subscribe([(topic, 1) for topic in self._topics])

    def _on_message(self, _c: object, _u: object, message: mqtt.MQTTMessage) -> None:
        result = msgspec.json.decode(message.payload, type=Result)
        correlation = getattr(message.properties, "CorrelationData", b"")
        self.results.append((message.topic, result, correlation))

    def send(
        self,
        payload: bytes | dict[str, Any],
        reply: tuple[str, bytes] | None = None,
        *,
        retain: bool = False,
    ) -> None:
        if isinstance(payload, dict):
            payload = msgspec.json.encode(payload)
        properties = None
        if reply:
            properties = Properties(PacketTypes.PUBLISH)
            properties.ResponseTopic, properties.CorrelationData = reply
        self.client.publish(
            f"{self._root}/cmd", payload, 1, retain, properties=properties
        ).wait_for_publish(10)

    def ends(self, id: str) -> list[Result]:
        return [one for _, one, _ in self.results if one.id == id and one.ended]

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
