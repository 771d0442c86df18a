"""From sound to cloud with everything being killed on the way, judged from outside."""

import contextlib
import hashlib
import io
import os
import shutil
import signal
import sqlite3
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile

from agent.records import RecordType, Segment
from tests.e2e.judge import Judge
from tests.e2e.sound import record, si_sdr
from tests.outside import Brake, Device, Mosquitto, running, until

SECONDS = 240.0
STREAM = "inbox.segments"


def held_audio(device: Device, copy: Path) -> dict[int, bytes]:
    """The FLAC of each held segment, read from a copy of the store's files."""
    copy.mkdir()
    for part in device.store.parent.glob("holdfast.db*"):
        shutil.copy(part, copy / part.name)
    with sqlite3.connect(copy / "holdfast.db") as db:
        rows = db.execute(
            "SELECT seq, data FROM chunks JOIN records ON blob = chunks.id >> 12"
            " JOIN streams ON streams.id = stream WHERE name = ? ORDER BY chunks.id",
            (STREAM,),
        ).fetchall()
    db.close()
    audio: dict[int, bytes] = {}
    for seq, data in rows:
        audio[seq] = audio.get(seq, b"") + data
    return audio


def held_raw(copy: Path) -> int:
    """How many raw records wait in a copy of the store's files."""
    with contextlib.closing(sqlite3.connect(copy / "holdfast.db")) as db:
        (held,) = db.execute("SELECT held FROM streams WHERE name = 'inbox.raw'").fetchone()
    return int(held)


def ready(device: Device) -> bool:
    """Whether the domain can hear."""
    return bool(device.status()["domains"]["audio"]["ready"])


def stretches(segments: list[Segment], name: str) -> list[tuple[int, int]]:
    """Where the segments of a recording lie; fails if two overlap."""
    spans = sorted((s.start, s.start + s.samples) for s in segments if s.name == name)
    for (_, end), (start, _) in pairwise(spans):
        assert end <= start, f"two segments of {name} overlap at {start}"
    return spans


def covered(spans: list[tuple[int, int]], samples: int) -> np.ndarray:
    """A mask of the samples that lie in a span."""
    mask = np.zeros(samples, bool)
    for start, end in spans:
        mask[start:end] = True
    return mask


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Segment]:
    """The segments of the same recordings when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    device = inbox_device(folder, "mqtt://127.0.0.1:1")
    for seed in (1, 2, 3):
        record(folder / "inbox" / f"{seed}.flac", seed, SECONDS)
    with running(device):
        until(lambda: len(list((folder / "inbox/done").glob("*"))) == 3, "all are taken in")
        until(lambda: device.ledger("inbox.raw")["held"] == 0, "all is heard")
        device.kill()
        with sqlite3.connect(device.store) as db:
            of_type = "SELECT body FROM records WHERE type = ?"
            rows = db.execute(of_type, [RecordType.SEGMENT]).fetchall()
        db.close()
    return [msgspec.json.decode(body, type=Segment) for (body,) in rows]


def inbox_device(folder: Path, url: str) -> Device:
    (folder / "inbox").mkdir()
    source = {"kind": "folder", "name": "inbox", "path": str(folder / "inbox")}
    return Device(
        folder,
        {
            "link": {
                "broker_url": url,
                "ack_from": "ingest",
                "backoff_s_min": 0.1,
                "backoff_s_max": 0.5,
                "ack_timeout_s": 5,
                "heartbeat_s": 0.5,
            },
            "audio": {"sources": [{**source, "poll_s": 0.05, "settle_s": 0.1}]},
        },
    )


def test_every_segment_arrives_once_although_everything_is_killed(
    tmp_path: Path, undisturbed: list[Segment]
) -> None:
    broker = Mosquitto(tmp_path)
    device = inbox_device(tmp_path, broker.url)
    judge = Judge(tmp_path / "judge.db", broker.port, "device-under-test")
    sound = {}
    with running(broker, judge, device):
        until(lambda: ready(device), "the domain is ready")
        judge.acking = False  # what arrives before the kill has to arrive again
        with Brake(device):
            sound["1.flac"] = record(tmp_path / "inbox/1.flac", 1, SECONDS)
            until(lambda: len(judge.seqs(STREAM)) >= 2, "segments of the first arrive")
            broker.kill()
            assert device.ledger("inbox.raw")["held"] > 0, "the first was over before the kill"
        until(lambda: (tmp_path / "inbox/done/1.flac").exists(), "the first is taken in")
        until(lambda: device.ledger("inbox.raw")["held"] == 0, "the first is heard")

        made = device.ledger(STREAM)["produced"]
        with Brake(device):
            sound["2.flac"] = record(tmp_path / "inbox/2.flac", 2, SECONDS)
            until(lambda: device.ledger(STREAM)["produced"] >= made + 2, "it hears the second")
            device.kill()
        before = held_audio(device, tmp_path / "copy-1")
        assert before, "the outbox is empty while offline"
        assert held_raw(tmp_path / "copy-1") > 0, "the second was over before the kill"
        device.start()
        until(lambda: (tmp_path / "inbox/done/2.flac").exists(), "the second is taken in")
        until(lambda: device.ledger("inbox.raw")["held"] == 0, "the second is heard")

        made = device.ledger(STREAM)["produced"]
        with Brake(device):
            sound["3.flac"] = record(tmp_path / "inbox/3.flac", 3, SECONDS)
            until(lambda: device.ledger(STREAM)["produced"] >= made + 2, "it hears the third")
            worker = device.status()["domains"]["audio"]["pid"]
            os.kill(worker, signal.SIGKILL)
            until(lambda: device.status()["domains"]["audio"]["pid"] != worker, "it is lost")
            assert device.ledger("inbox.raw")["held"] > 0, "the third was over before the kill"
        until(lambda: device.status()["domains"]["audio"]["restarts"] == 1, "a new domain")
        until(lambda: (tmp_path / "inbox/done/3.flac").exists(), "the third is taken in")
        until(lambda: device.ledger("inbox.raw")["held"] == 0, "the third is heard")
        before |= held_audio(device, tmp_path / "copy-2")

        broker.start()
        until(lambda: judge.repeats > 0, "what was not acknowledged is sent again")
        judge.acking = True
        until(lambda: device.ledger(STREAM)["held"] == 0, "everything is acknowledged")
        ledger = device.ledger(STREAM)
        until(
            lambda: [ledger] == [of[STREAM] for of in judge.last("heartbeat")["ledger"].values()],
            "the cloud is told",
        )
        assert judge.last("presence")["online"] is True

    judge_all_is_there(judge, ledger, before, undisturbed)
    judge_the_sound(judge, sound)


def judge_all_is_there(
    judge: Judge, ledger: dict, before: dict[int, bytes], undisturbed: list[Segment]
) -> None:
    """Each segment once, byte for byte what the store held, nothing missing, the ledger equal."""
    assert judge.faults == []
    arrived = judge.segments(STREAM)
    assert list(arrived) == list(range(1, len(arrived) + 1))
    assert ledger == {
        "produced": len(arrived),
        "delivered": len(arrived),
        "held": 0,
        "dropped": {},
    }
    assert judge.seqs(STREAM) == list(arrived)
    assert before.items() <= {seq: flac for seq, (_, flac) in arrived.items()}.items()
    segments = [segment for segment, _ in arrived.values()]
    for name in ("1.flac", "2.flac", "3.flac"):
        samples = int(SECONDS * 16_000)
        got = covered(stretches(segments, name), samples)
        wanted = covered(stretches(undisturbed, name), samples)
        assert (got & wanted).sum() >= 0.999 * wanted.sum(), f"speech of {name} is missing"
        assert (got & ~wanted).sum() <= 0.001 * samples, f"{name} has what was never said"


def judge_the_sound(judge: Judge, sound: dict) -> None:
    """What arrived is the FLAC its record promises, and cleaner than what went in."""
    went_in, came_out, clean = [], [], []
    for segment, flac in judge.segments(STREAM).values():
        pcm, rate = soundfile.read(io.BytesIO(flac), dtype="float64")
        assert (rate, len(pcm), len(flac)) == (16_000, segment.samples, segment.size_bytes)
        assert hashlib.sha256(flac).hexdigest() == segment.sha256
        noisy, wanted = sound[segment.name]
        at = slice(segment.start, segment.start + segment.samples)
        went_in.append(noisy[at])
        came_out.append(pcm)
        clean.append(wanted[at])
    before = si_sdr(np.concatenate(went_in), np.concatenate(clean))
    after = si_sdr(np.concatenate(came_out), np.concatenate(clean))
    print(f"SI-SDR of the speech: {before:.2f} dB went in, {after:.2f} dB arrived")
    assert after > before + 1.0
