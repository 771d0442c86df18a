"""Acks that are larger than the broker takes: they get smaller, and hold up nobody."""

from pathlib import Path

import pytest

from agent.protocol import ack
from tests.fleet.process import IngestProcess, Line
from tests.fleet.sender import Sender
from tests.outside import Mosquitto, running, until

STREAMS = [Sender("big", stream=f"{name}.x") for name in "abc"]
TAKEN_BYTES = 20_000
CONNECTS_MAX = 10  # one that goes on for ever comes to this within a second or two


@pytest.mark.parametrize("option", ["max_packet_size", "message_size_limit"])
def test_a_large_ack_holds_up_no_other(tmp_path: Path, option: str) -> None:
    """The first is said beforehand, by the second a connection is cut without a word."""
    broker = Mosquitto(tmp_path, extra=f"{option} {TAKEN_BYTES}\n")
    ingest = IngestProcess(tmp_path, broker.url, f"sqlite:///{tmp_path}/fleet.db")
    good = Sender("good")
    with (
        running(broker, ingest),
        Line(broker.port, good) as line,
        Line(broker.port, STREAMS[0]) as big,
    ):
        for at in range(0, 600, 100):
            seqs = range(10**6 + 2 * at, 10**6 + 2 * at + 200, 2)
            big.send(*[sender.batch(seqs) for sender in STREAMS])
        line.send(good.batch([1]))
        line.marked(1)
        big.send(*[sender.batch([1]) for sender in STREAMS])
        until(
            lambda: big.acks and [of.mark for of in big.acks[-1].epochs["e1"].values()] == [1] * 3,
            "the large one is told what fits",
        )
        assert len(ack.encode(big.acks[-1])) < TAKEN_BYTES
        line.send(good.batch([2]))
        line.marked(2)
        connects = ingest.said("connected to")
        assert connects == 1 if option == "max_packet_size" else connects < CONNECTS_MAX
