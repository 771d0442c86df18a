"""A plain client on a broker that notes every message."""

import random
from typing import Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.outside import until


class Listener:
    """Subscribed from the start, until `stop`; `got` is topic, payload and retain flag of each."""

    def __init__(self, port: int, *topics: str) -> None:
        """Without topics: all."""
        self.got: list[tuple[str, bytes, bool]] = []
        self._subscribed = False
        asked = [(topic, 1) for topic in topics or ("#",)]
        name = f"listener-{random.randrange(10**9)}"
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, name)
        self.client.on_connect = lambda c, *_: c.subscribe(asked)
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = lambda _c, _u, m: self.hear(m.topic, m.payload, retain=m.retain)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        until(lambda: self._subscribed, "the listener is subscribed")

    def _on_subscribe(self, *_: object) -> None:
        self._subscribed = True

    def hear(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """A message came."""
        self.got.append((topic, payload, retain))

    def at(self, door: str) -> list[bytes]:
        """What came at a door of the device: `up`, `ack` and so on."""
        return [payload for topic, payload, _ in list(self.got) if f"/{door}" in topic]

    def stop(self) -> None:
        """Go away."""
        self.client.disconnect()
        self.client.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
