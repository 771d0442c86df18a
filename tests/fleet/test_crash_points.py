"""kill -9 of the ingest at each commit point: what was not stored comes again, nothing twice.

The device sends everything once: what a killed ingest had, the broker brings to the next one. Only
what was PUBACKed, and its ack not published, the device has to send again.
HOLDFAST_LONG=1 takes more rounds; HOLDFAST_SEED=N other moments.
"""

import random
import sys
from pathlib import Path

from agent.protocol.ack import StreamAck
from fleet.store.cloud import Arrival
from tests.fleet.process import IngestProcess, Line
from tests.fleet.sender import Sender
from tests.fleet.test_ingest import ask, seqs
from tests.fleet.test_model import LONG, SEED
from tests.fleet.tripwire import POINTS
from tests.outside import Mosquitto, running


def test_killed_at_each_commit_point(tmp_path: Path, url: str) -> None:
    chance = random.Random(f"{SEED}.crash")
    broker, sender = Mosquitto(tmp_path), Sender()
    sent = 0
    with running(broker), Line(broker.port, sender) as line:
        with running(first := _ingest(tmp_path, broker.url, url)):
            assert first.stop() == 0  # the broker knows it from now on
        for point in POINTS * (10 if LONG else 1):
            ingest = _ingest(tmp_path, broker.url, url)
            tripped = ("-m", "tests.fleet.tripwire", point, str(chance.randint(1, 6)))
            ingest.command[:1] = [sys.executable, *tripped]
            ingest.begin()
            try:
                while not ingest.dead():
                    line.send(*_records(sender, sent, chance.randint(1, 100)))
                    sent += 5
                ingest.killed_itself()
            finally:
                ingest.kill()
        with running(last := _ingest(tmp_path, broker.url, url)):
            # An ack that died with its ingest: the device misses it, and sends again.
            line.send(sender.batch([sent]))
            line.marked(sent)
            assert line.acked() == StreamAck(sent)
            assert last.stop() == 0
    assert ask(url, lambda cloud: seqs(cloud, sender.device)) == list(range(1, sent + 1))


def _records(sender: Sender, after: int, blob_bytes: int) -> list[Arrival]:
    """Five records, of which the first has a blob."""
    sound = b"x" * blob_bytes
    return [
        sender.piece(after + 1, sound, 0, blob_bytes),
        sender.batch([after + 1], blob_bytes=blob_bytes),
        sender.batch(range(after + 2, after + 6)),
    ]


def _ingest(folder: Path, broker_url: str, url: str) -> IngestProcess:
    return IngestProcess(folder, broker_url, url, "--client-id", "ingest-1")
