"""A real ingest in a process of its own, and a device's end of the broker."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.protocol import ack, grants
from agent.protocol.ack import Ack, StreamAck
from agent.protocol.grants import Ask, Grant
from fleet.store.cloud import Arrival
from tests.fleet.sender import Sender, encoded
from tests.outside import DEADLINE_S, ROOT, free_port, until

FLEET = Path(sys.executable).with_name("holdfast-fleet")


class IngestProcess:
    """`holdfast-fleet ingest`; its log is a file."""

    def __init__(self, folder: Path, broker_url: str, database_url: str, *options: str) -> None:
        self.metrics_port = free_port()
        self.log = folder / f"ingest-{self.metrics_port}.log"
        self.command = [
            *(str(FLEET), "ingest", "--broker", broker_url, "--database", database_url),
            *("--metrics-port", str(self.metrics_port), "--ack-s", "0.02", *options),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is connected."""
        before = self.said("connected to")
        self.begin()
        until(lambda: self.dead() or self.said("connected to") > before, "the ingest connects")
        assert not self.dead(), self.log.read_text()

    def begin(self) -> None:
        """Start it, and do not wait."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=ROOT)

    @property
    def pid(self) -> int:
        """The ingest's process id, once it was started."""
        assert self._process is not None
        return self._process.pid

    def said(self, words: str) -> int:
        """How often its log says this."""
        return self.log.read_text().count(words) if self.log.exists() else 0

    def dead(self) -> bool:
        """Whether the process has ended."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """kill -9."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(DEADLINE_S)

    def killed_itself(self) -> None:
        """Wait for the end it was told to make."""
        until(self.dead, "the ingest meets its point")
        assert self._process is not None
        assert self._process.returncode == -signal.SIGKILL, self.log.read_text()


class Line:
    """A device's connection: sends with QoS 1, hears acks and grants. Use it with `with`."""

    def __init__(self, port: int, sender: Sender, *, v5: bool = True) -> None:
        self.sender = sender
        self.acks: list[Ack] = []
        self.grants: list[Grant] = []
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            f"device-{sender.device}-{os.urandom(4).hex()}",
            protocol=MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311,
        )
        self._client.max_inflight_messages_set(1000)
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(f"{sender.root}/ack", 1), (f"{sender.root}/blob-grant", 1)]
        )
        self._client.on_message = self._heard
        self._client.reconnect_delay_set(1, 1)
        self._port = port

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        until(self._client.is_connected, "the device is connected")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _heard(self, _c: Any, _u: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic.endswith("/blob-grant"):
            self.grants.append(grants.decode_grant(bytes(message.payload)))
        else:
            self.acks.append(ack.decode(bytes(message.payload)))

    def ask(self, ask: Ask) -> Grant:
        """Ask where a blob goes; the answer."""
        before = len(self.grants)
        self.say("blob-ask", grants.encode(ask))
        until(lambda: self.grants[before:], "the grant")
        return self.grants[-1]

    def send(self, *arrivals: Arrival) -> None:
        """Publish, and wait until the broker has it all."""
        out = [self._client.publish(one.topic, one.payload, 1) for one in arrivals]
        until(lambda: all(one.is_published() for one in out), "the broker has it")

    def appear(self, *, online: bool = True) -> None:
        """Say that it is there."""
        word = encoded(self.sender.presence(online=online))
        self._client.publish(f"{self.sender.root}/presence", word, 1, retain=True)

    def say(self, door: str, payload: bytes) -> None:
        """Anything, at a door of this device."""
        self.send(Arrival(f"{self.sender.root}/{door}", payload))

    def acked(self) -> StreamAck:
        """The last word on the stream, but for the digest of the record at the mark."""
        return self._said(self.acks[-1]) if self.acks else StreamAck()

    def _said(self, word: Ack) -> StreamAck:
        streams = word.epochs.get(self.sender.epoch, {})
        return msgspec.structs.replace(streams.get(self.sender.stream, StreamAck()), tail=None)

    def marked(self, mark: int) -> None:
        """Wait for this mark; of two ingests the slower may send a lower one behind it."""
        until(
            lambda: any(self._said(word).mark >= mark for word in reversed(self.acks)),
            f"the ack of #{mark}",
        )
