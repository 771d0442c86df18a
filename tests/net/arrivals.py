"""What comes out of a broker, in which order, and how much of it comes again: a plain client."""

import os
from typing import Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent.protocol import batch, blob
from tests.outside import until

DOORS = ("+/+/+/up/#", "+/+/+/blob/#")


class Arrivals:
    """Listens while its context lasts; `heads` are the batches so far, in the order they came.

    `again_bytes` of all `bytes` were sent before: of a piece those that it has in common with
    another one, of a batch the part of its records that came already.
    """

    def __init__(self, port: int) -> None:
        self.heads: list[batch.Header] = []
        self.bytes = self.again_bytes = 0
        self._records: set[tuple[str, str, int]] = set()
        self._ends: dict[tuple[str, str, int], int] = {}  # of a blob: how far it came
        self._port = port
        self._subscribed = False
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, f"arrivals-{os.getpid()}")
        self._client.on_connect = lambda c, *_: c.subscribe(
            [("+/+/+/up/#", 1), ("+/+/+/blob/#", 1)]
        )
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        until(lambda: self._subscribed, "the listener is subscribed")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def beyond(self, stream: str, seq: int) -> list[bool]:
        """Of each batch of a stream, whether it is of later records than this one."""
        return [head.last > seq for head in list(self.heads) if head.stream == stream]

    def _on_subscribe(self, *_: object) -> None:
        self._subscribed = True

    def _on_message(self, _c: object, _u: object, message: mqtt.MQTTMessage) -> None:
        self.bytes += len(message.payload)
        if message.topic.split("/")[3] == "up":
            self._batch(message.payload)
        else:
            self._piece(message.payload)

    def _batch(self, payload: bytes) -> None:
        head, events = batch.decode(payload)
        self.heads.append(head)
        records = {(head.epoch, head.stream, event.sequence) for event in events}
        if records:
            known = records & self._records
            self.again_bytes += len(payload) * len(known) // len(records)
            self._records |= records

    def _piece(self, payload: bytes) -> None:
        head, data = blob.decode(payload)
        key = (head.epoch, head.stream, head.seq)
        end, came = head.start + len(data), self._ends.get(key, 0)
        self.again_bytes += max(0, min(end, came) - head.start)
        self._ends[key] = max(end, came)
