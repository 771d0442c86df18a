"""`keep: all`: the raw audio reaches the cloud too, whole and in order."""

from pathlib import Path

import msgspec
import numpy as np
import soundfile

from agent.records import Raw
from tests.e2e.judge import Judge
from tests.outside import ROOT, Device, Mosquitto, running, until


def test_the_raw_audio_arrives_whole_beside_the_segments(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    sample = ROOT / "samples/workshop.flac"
    (tmp_path / "inbox" / sample.name).write_bytes(sample.read_bytes())
    source = {"kind": "folder", "name": "inbox", "path": str(tmp_path / "inbox"), "keep": "all"}
    broker = Mosquitto(tmp_path)
    judge = Judge(tmp_path / "judge.db", broker.port, "device-under-test")
    settings = {
        "link": {"broker_url": broker.url, "ack_from": "ingest"},
        "audio": {"sources": [{**source, "poll_s": 0.05, "settle_s": 0.05}]},
    }
    device = Device(tmp_path, settings)
    with running(broker, judge, device):
        until((tmp_path / "inbox/done" / sample.name).exists, "it is taken in")
        for stream in ("inbox.raw", "inbox.segments"):
            until(lambda s=stream: device.ledger(s)["delivered"] > 0, f"{stream} is delivered")
            until(lambda s=stream: device.ledger(s)["held"] == 0, f"{stream} is empty")
            ledger = device.ledger(stream)
            assert ledger["dropped"] == {}
            assert judge.seqs(stream) == list(range(1, ledger["delivered"] + 1))
    assert judge.faults == []
    rows = judge.blobs("inbox.raw")
    raw = [msgspec.json.decode(body, type=Raw) for body, _ in rows]
    assert [r.offset for r in raw[1:]] == [r.offset + r.samples for r in raw[:-1]]
    assert raw[-1].end
    wanted, _ = soundfile.read(sample, dtype="int16")
    np.testing.assert_array_equal(np.frombuffer(b"".join(pcm for _, pcm in rows), "<i2"), wanted)


def test_raw_audio_of_a_source_that_left_the_configuration_is_still_sent(tmp_path: Path) -> None:
    """Kept offline under `keep: all`; then the source is renamed, and the network comes."""
    (tmp_path / "inbox").mkdir()
    sample = ROOT / "samples/workshop.flac"
    (tmp_path / "inbox" / sample.name).write_bytes(sample.read_bytes())
    broker = Mosquitto(tmp_path)
    judge = Judge(tmp_path / "judge.db", broker.port, "device-under-test")

    def device(name: str) -> Device:
        source = {"kind": "folder", "name": name, "path": str(tmp_path / "inbox"), "keep": "all"}
        settings = {
            "link": {"broker_url": broker.url, "ack_from": "ingest", "backoff_s_min": 0.1},
            "audio": {"sources": [{**source, "poll_s": 0.05, "settle_s": 0.05}]},
        }
        return Device(tmp_path, settings)

    before = device("before")
    with running(before):
        until((tmp_path / "inbox/done" / sample.name).exists, "it is taken in")
        until(lambda: before.ledger("before.segments")["held"] > 0, "it is heard")
        held = before.ledger("before.raw")["held"]
        assert before.stop() == 0
    after = device("after")
    with running(broker, judge, after):
        until(lambda: after.ledger("before.raw")["delivered"] == held, "all is delivered")
        ledger = after.ledger("before.raw")
        assert (ledger["held"], ledger["dropped"]) == (0, {})
    assert judge.seqs("before.raw") == list(range(1, held + 1))
