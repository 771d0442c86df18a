"""The link's dead letters by `holdfast outbox`: a real agent, Mosquitto, the ingest."""

import asyncio
import json
import random
import sqlite3
from pathlib import Path
from typing import Any

from agent import config
from agent.clock import Clock
from agent.records import RecordType
from agent.store.intake import New
from agent.store.store import Store
from tests.cli.test_outbox import document, outbox
from tests.fleet.process import IngestProcess
from tests.outside import Device, Mosquitto, running, until

STREAM = "lab.segments"
HUGE = [b'{"x":"%s"}' % random.Random(n).randbytes(12_000).hex().encode() for n in (1, 2)]


def device(folder: Path, broker: Mosquitto, payload_bytes_max: int) -> Device:
    link = {
        "broker_url": broker.url,
        "ack_from": "ingest",
        "payload_bytes_max": payload_bytes_max,
        "backoff_s_min": 0.05,
        "backoff_s_max": 0.1,
    }
    return Device(folder, {"link": link})


async def fill(path: Path) -> None:
    """1-9; 4 and 7 are larger than a payload may be."""
    bodies = [*[b"{}"] * 3, HUGE[0], *[b"{}"] * 2, HUGE[1], *[b"{}"] * 2]
    async with Store(config.Store(path=str(path)), Clock()) as store:
        await store.intake.append(STREAM, [New(RecordType.SEGMENT, body) for body in bodies])


def letters(of: Device) -> str:
    found: list[dict[str, Any]] = of.status()["conditions"]
    return next((c["cause"] for c in found if c["name"] == "dead_letters"), "")


def stored(path: Path) -> list[int]:
    with sqlite3.connect(path) as db:
        ask = "SELECT seq FROM records WHERE type = ? ORDER BY seq"
        found = [seq for (seq,) in db.execute(ask, [RecordType.SEGMENT])]
    db.close()
    return found


def adds_up(of: Device) -> bool:
    return bool(document(of, "verify", "--deep")["balanced"])


def test_a_record_that_is_too_large_is_held_shown_and_sent_once_the_limit_is_raised(
    tmp_path: Path,
) -> None:
    broker, copy = Mosquitto(tmp_path), tmp_path / "fleet.db"
    ingest = IngestProcess(tmp_path, broker.url, f"sqlite:///{copy}")
    small = device(tmp_path, broker, 8192)
    small.store.parent.mkdir()
    asyncio.run(fill(small.store))
    with running(broker, ingest, small):
        until(lambda: letters(small).startswith("2 records"), "both are dead letters")
        assert "#7: " in letters(small)
        until(lambda: small.ledger(STREAM)["delivered"] == 7, "the others are delivered")
        assert "2 dead" in outbox(small, "ls").stdout
        shown = document(small, "show", STREAM, "--dead")["records"]
        assert [(one["seq"], one["state"]) for one in shown] == [(4, "dead"), (7, "dead")]
        assert "link.payload_bytes_max" in shown[0]["cause"]
        assert adds_up(small)

        done = outbox(small, "retry", STREAM)
        assert done.stdout == f"{STREAM}: dead letters to be tried again: 2\n"
        until(
            lambda: (
                [one["state"] for one in document(small, "show", STREAM)["records"]]
                == ["dead", "dead"]
            ),
            "under the same limit they die again",
        )
        assert document(small, "drop", STREAM, "4", "--reason", "dull", "--yes") == {"dropped": 1}
        until(lambda: letters(small).startswith("1 record is"), "one is left")
        assert small.stop() == 0

        large = device(tmp_path, broker, 131_072)
        with running(large):
            until(lambda: "#7: " in letters(large), "it is said after a restart")
            assert large.ledger(STREAM)["held"] == 1
            assert json.loads(outbox(large, "retry", STREAM, "7", "--json").stdout)["sending"] == 1
            until(lambda: large.ledger(STREAM)["held"] == 0, "it is delivered")
            assert stored(copy) == [1, 2, 3, 5, 6, 7, 8, 9]
            until(lambda: not letters(large), "nobody speaks of it")
            assert large.ledger(STREAM)["dropped"] == {"operator": 1}
            assert outbox(large, "show", STREAM, "--dead").stdout == "no dead letters\n"
            assert adds_up(large)
