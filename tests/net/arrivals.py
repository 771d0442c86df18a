"""In which order things come out of a broker: a plain client that notes the head of each batch."""

import os
from typing import Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent.protocol import batch
from tests.outside import until


class Arrivals:
    """Listens while its context lasts; `heads` are the batches so far, in the order they came."""

    def __init__(self, port: int) -> None:
        self.heads: list[batch.Header] = []
        self._port = port
        self._subscribed = False
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, f"arrivals-{os.getpid()}")
        self._client.on_connect = lambda c, *_: c.subscribe("+/+/+/up/#", 1)
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = lambda _c, _u, m: self.heads.append(batch.decode(m.payload)[0])

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        until(lambda: self._subscribed, "the listener is subscribed")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_subscribe(self, *_: object) -> None:
        self._subscribed = True
