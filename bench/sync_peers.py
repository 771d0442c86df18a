"""What bench/sync is measured against: the same records by other ways, and the broker's count."""

import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.outside import Mosquitto, until

IN_FLIGHT = 20
SIDE_S_MAX = 600.0


class Counter:
    """The bytes that the broker has received, by its own count, told each second it grew."""

    def __init__(self, port: int) -> None:
        self._told: list[int] = []
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda c, *_: c.subscribe("$SYS/broker/bytes/received")
        self._client.on_message = lambda _c, _u, m: self._told.append(int(m.payload))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def read(self) -> int:
        """All that came before; two small messages of ours make it tell, and count too."""
        for _ in range(2):
            self._told.clear()
            self._client.publish("bench", b"", 0)
            until(lambda: self._told, "the broker counts")
        return self._told[-1]

    def stop(self) -> None:
        """Go away."""
        self._client.disconnect()
        self._client.loop_stop()


def single(bodies: list[bytes]) -> tuple[float, float]:
    """Plain paho, one message each; messages per second until all PUBACKs, and wire bytes each."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        broker = Mosquitto(Path(name), extra="sys_interval 1\n")
        broker.start()
        counter = Counter(broker.port)
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.max_inflight_messages_set(IN_FLIGHT)
        answered, over = 0, threading.Event()

        def on_publish(*_: object) -> None:
            nonlocal answered
            answered += 1
            if answered == len(bodies):
                over.set()

        client.on_publish = on_publish
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        began = time.perf_counter()
        for one in bodies:
            client.publish("holdfast/v1/plain/up/bench", one, 1)
        over.wait(SIDE_S_MAX)
        elapsed_s = time.perf_counter() - began
        client.disconnect()
        client.loop_stop()
        wire_bytes = counter.read() / len(bodies)
        counter.stop()
        broker.kill()
        return len(bodies) / elapsed_s, wire_bytes


def piped(bodies: list[bytes]) -> float:
    """`mosquitto_pub -l`: lines per second until it has all PUBACKs and ends."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        broker = Mosquitto(Path(name))
        broker.start()
        command = ["mosquitto_pub", "-p", str(broker.port), "-t", "plain", "-q", "1", "-l"]
        began = time.perf_counter()
        subprocess.run(command, input=b"\n".join(bodies) + b"\n", check=True)
        elapsed_s = time.perf_counter() - began
        broker.kill()
        return len(bodies) / elapsed_s


def bare(held: Path, count: int, step: int) -> float:
    """Read and delete the same rows, oldest first, `step` at a time; rows per second."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        copy = Path(name) / "bare.db"
        shutil.copy(held / "holdfast.db", copy)
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            began, last = time.perf_counter(), 0
            while rows := connection.execute(
                "SELECT * FROM records WHERE id > ? ORDER BY id LIMIT ?", (last, step)
            ).fetchall():
                last = rows[-1][0]
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("DELETE FROM records WHERE id <= ?", (last,))
                connection.execute("COMMIT")
            return count / (time.perf_counter() - began)
