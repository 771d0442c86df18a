"""The judge: stands in for the cloud, keeps what arrives in a database of its own, sends acks.

It knows the agent only by its messages. Repeats collapse by (epoch, stream, seq); an ack is
computed from the database after its commit, as a real ingest does.
"""

import sqlite3
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.protocol import ack, batch, blob
from agent.records import Range, Segment

SCHEMA = """
CREATE TABLE records (epoch, stream, seq INTEGER, size INTEGER, body BLOB,
    PRIMARY KEY (epoch, stream, seq));
CREATE TABLE pieces (epoch, stream, seq INTEGER, start INTEGER, data BLOB,
    PRIMARY KEY (epoch, stream, seq, start));
CREATE TABLE drops (epoch, stream, first INTEGER, last INTEGER, reason,
    PRIMARY KEY (epoch, stream, first, last));
CREATE TABLE heard (topic, payload BLOB);
"""
COMPLETE = """
SELECT seq FROM records r WHERE epoch = ? AND stream = ? AND size =
    (SELECT coalesce(sum(length(data)), 0) FROM pieces p
     WHERE p.epoch = r.epoch AND p.stream = r.stream AND p.seq = r.seq) ORDER BY seq
"""


class Judge:
    """Listens to one device on a broker; start and stop it as often as you like."""

    def __init__(self, path: Path, port: int, device: str, prefix: str = "holdfast/v1") -> None:
        self.acking = True  # a cloud that stores and does not say so is one that lost its acks
        self.repeats = 0  # records that came again
        self.faults: list[str] = []  # what no device may send
        self._port = port
        self._root = f"{prefix}/{device}"
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.execute("PRAGMA synchronous = OFF")  # nobody cuts its power; some disks are slow
        self._db.executescript(SCHEMA)
        self._client: mqtt.Client | None = None

    def start(self) -> None:
        """Connect and subscribe; paho's thread reconnects by itself."""
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2, "judge", protocol=MQTTProtocolVersion.MQTTv311
        )
        client.reconnect_delay_set(1, 1)
        client.on_connect = lambda c, *_: c.subscribe(f"{self._root}/#", 1)
        client.on_message = self._on_message
        client.connect("127.0.0.1", self._port)
        client.loop_start()

    def stop(self) -> None:
        """Go away; the database stays."""
        if self._client:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None

    def kill(self) -> None:
        """As `stop`, for `running`."""
        self.stop()

    def _on_message(self, client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        door = message.topic.removeprefix(self._root).split("/")[1]
        with self._lock:
            if door == "up":
                epoch = self._store_batch(bytes(message.payload))
            elif door == "blob":
                epoch = self._store_piece(bytes(message.payload))
            else:
                self._db.execute("INSERT INTO heard VALUES (?, ?)", (door, message.payload))
                self._db.commit()
                return
            self._db.commit()
            word = self._word(epoch)
            acking = self.acking  # as of what is stored: who sees it may change that
        if acking:
            client.publish(f"{self._root}/ack", word, 1, retain=True)

    def acknowledge(self) -> None:
        """Say what is stored, now, as a cloud does that begins to acknowledge."""
        assert self._client
        with self._lock:
            self._client.publish(f"{self._root}/ack", self._word(), 1, retain=True)

    def _word(self, *also: str) -> bytes:
        epochs = {one for (one,) in self._db.execute("SELECT DISTINCT epoch FROM records")}
        return ack.encode(ack.Ack({one: self._ack(one) for one in {*also, *epochs}}))

    def _store_batch(self, payload: bytes) -> str:
        header, events = batch.decode(payload)
        seqs = [event.sequence for event in events]
        ends = (seqs[0], seqs[-1]) if seqs else (header.dropped[0].first, header.dropped[-1].last)
        if (header.first, header.last) != ends or seqs != sorted(set(seqs)):
            self.faults.append(f"batch {header} holds {seqs}")
        for event in events:
            key = (header.epoch, header.stream, event.sequence)
            new = self._db.execute(
                "INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?)",
                (*key, event.blobsize, bytes(event.data)),
            ).rowcount
            self.repeats += 1 - new
            if not new:
                (body,) = self._db.execute(
                    "SELECT body FROM records WHERE epoch = ? AND stream = ? AND seq = ?", key
                ).fetchone()
                if body != bytes(event.data):
                    self.faults.append(f"{key} came twice with different bodies")
        self._db.executemany(
            "INSERT OR IGNORE INTO drops VALUES (?, ?, ?, ?, ?)",
            [(header.epoch, header.stream, d.first, d.last, d.reason) for d in header.dropped],
        )
        return header.epoch

    def _store_piece(self, payload: bytes) -> str:
        header, data = blob.decode(payload)
        key = (header.epoch, header.stream, header.seq)
        if header.start == self._begun(key):
            self._db.execute(
                "INSERT INTO pieces VALUES (?, ?, ?, ?, ?)", (*key, header.start, data)
            )
        return header.epoch

    def _begun(self, key: tuple[str, str, int]) -> int:
        """Bytes of a blob from its start that are there."""
        (size,) = self._db.execute(
            "SELECT coalesce(sum(length(data)), 0) FROM pieces"
            " WHERE epoch = ? AND stream = ? AND seq = ?",
            key,
        ).fetchone()
        return int(size)

    def _ack(self, epoch: str) -> dict[str, ack.StreamAck]:
        names = self._db.execute(
            "SELECT DISTINCT stream FROM records WHERE epoch = :epoch"
            " UNION SELECT DISTINCT stream FROM pieces WHERE epoch = :epoch"
            " UNION SELECT DISTINCT stream FROM drops WHERE epoch = :epoch",
            {"epoch": epoch},
        ).fetchall()
        return {name: self._stream_ack(epoch, name) for (name,) in names}

    def _stream_ack(self, epoch: str, stream: str) -> ack.StreamAck:
        spans = [(seq, seq) for (seq,) in self._db.execute(COMPLETE, (epoch, stream))]
        spans += self._db.execute(
            "SELECT first, last FROM drops WHERE epoch = ? AND stream = ?", (epoch, stream)
        ).fetchall()
        mark, ranges = 0, list[Range]()
        for first, last in sorted(spans):
            if first <= mark + 1:
                mark = max(mark, last)
            elif ranges and first <= ranges[-1].last + 1:
                ranges[-1] = Range(ranges[-1].first, max(last, ranges[-1].last))
            else:
                ranges.append(Range(first, last))
        parts = self._db.execute(
            "SELECT seq, sum(length(data)) FROM pieces WHERE epoch = ? AND stream = ? AND seq > ?"
            " GROUP BY seq LIMIT 100",
            (epoch, stream, mark),
        )
        return ack.StreamAck(mark, ranges, dict(parts.fetchall()))

    def mark(self, stream: str) -> int:
        """Up to where nothing is missing."""
        with self._lock:
            (epoch,) = self._db.execute("SELECT DISTINCT epoch FROM records").fetchone()
            return self._stream_ack(epoch, stream).mark

    def count(self, epoch: str, stream: str) -> int:
        """How many records of one epoch are stored whole."""
        with self._lock:
            return len(self._db.execute(COMPLETE, (epoch, stream)).fetchall())

    def seqs(self, stream: str) -> list[int]:
        """What is stored whole of a stream, over its newest epoch."""
        with self._lock:
            epochs = self._db.execute("SELECT DISTINCT epoch FROM records").fetchall()
            assert len(epochs) <= 1, f"expected one epoch, found {epochs}"
            return [seq for (e,) in epochs for (seq,) in self._db.execute(COMPLETE, (e, stream))]

    def segments(self, stream: str) -> dict[int, tuple[Segment, bytes]]:
        """The stored segments of a stream with their FLAC, by seq."""
        return {
            seq: (msgspec.json.decode(body, type=Segment), flac)
            for seq, (body, flac) in zip(self.seqs(stream), self.blobs(stream), strict=True)
        }

    def blobs(self, stream: str) -> list[tuple[bytes, bytes]]:
        """Body and blob of the stored records of a stream, in seq order."""
        with self._lock:
            rows = self._db.execute(
                "SELECT seq, body FROM records WHERE stream = ? ORDER BY seq", (stream,)
            ).fetchall()
            return [(body, self._joined(stream, seq)) for seq, body in rows]

    def _joined(self, stream: str, seq: int) -> bytes:
        pieces = self._db.execute(
            "SELECT data, start FROM pieces WHERE stream = ? AND seq = ? ORDER BY start",
            (stream, seq),
        ).fetchall()
        for (data, start), (_, following) in pairwise(pieces):
            assert start + len(data) == following, f"a hole in the blob of {stream} #{seq}"
        return b"".join(data for data, _ in pieces)

    def last(self, door: str) -> dict[str, Any]:
        """The newest message at `presence` or `heartbeat`; empty before the first."""
        with self._lock:
            row = self._db.execute(
                "SELECT payload FROM heard WHERE topic = ? ORDER BY rowid DESC", (door,)
            ).fetchone()
        return msgspec.json.decode(row[0]) if row else {}
