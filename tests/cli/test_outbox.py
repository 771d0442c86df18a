"""`holdfast outbox`, with a real agent and without one."""

import json
import os
import pty
import sqlite3
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cli import outbox_view
from agent.records import RecordType, Stamp
from agent.store import streams
from tests.cli.inbox import heard, inbox
from tests.outside import DEADLINE_S, HOLDFAST, ROOT, Checked, Device, running, until

SEGMENTS = "inbox.segments"


def outbox(
    device: Device, *more: str, columns: int = 80, stdin: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HOLDFAST), "outbox", *more, "--config", str(device.config)],
        capture_output=True,
        text=True,
        stdin=stdin,
        timeout=DEADLINE_S,
        env={**os.environ, "COLUMNS": str(columns)},
    )


def document(device: Device, *more: str, code: int = 0) -> dict[str, Any]:
    done = outbox(device, *more, "--json")
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def hearing(folder: Path) -> Device:
    device = Device(folder, inbox(folder))
    sample = ROOT / "samples" / "fan.flac"
    (folder / "inbox" / "fan.flac").write_bytes(sample.read_bytes())
    return device


def all_is_kept(device: Device) -> None:
    until(lambda: device.ledger(SEGMENTS)["held"] > 3, "segments are kept")
    until(lambda: heard(device), "all is heard")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """An agent without its broker that has heard a recording."""
    device = hearing(tmp_path_factory.mktemp("agent"))
    with running(device):
        all_is_kept(device)
        yield device


@pytest.mark.parametrize("columns", [80, 120])
def test_ls_has_a_line_for_each_stream(agent: Device, columns: int) -> None:
    lines = outbox(agent, "ls", columns=columns).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    (line,) = [one.split() for one in lines if one.startswith(SEGMENTS)]
    held = agent.ledger(SEGMENTS)["held"]
    assert str(held) in line
    assert "waiting" in line
    assert "produced" in lines[1] or columns < 120
    assert document(agent, "ls")["streams"][1]["held"] == held


def test_show_lists_records_and_drops_and_opens_one(agent: Device) -> None:
    text = outbox(agent, "show", SEGMENTS, "--count", "2").stdout
    assert "holdfast.segment.v1" in text
    assert "there is more: --from " in text
    assert max(map(len, text.splitlines())) <= 80
    produced = agent.ledger("inbox.raw")["produced"]
    assert f"#1 to #{produced}  processed" in outbox(agent, "show", "inbox.raw").stdout
    assert outbox(agent, "show", "inbox.raw", "--dead").stdout == "no dead letters\n"
    last = str(agent.ledger(SEGMENTS)["produced"])
    body = document(agent, "show", SEGMENTS, last)["body"]
    assert body["source"] == "inbox"
    assert f'"id": "{body["id"]}"' in outbox(agent, "show", SEGMENTS, last).stdout


@pytest.mark.parametrize(
    ("leased", "spans", "dead", "said"),
    [
        (0, 0, 0, "waiting"),
        (110, 1, 0, "leased to #110"),
        (110, 3, 0, "leased in 3 parts"),
        (110, 3, 2, "leased in 3 parts, [red]2 dead[/]"),
    ],
)
def test_what_is_leased_is_said_as_one_only_if_it_is(
    leased: int, spans: int, dead: int, said: str
) -> None:
    row = {"state": "waiting", "leased": leased, "leased_spans": spans, "dead": dead}
    assert outbox_view._stream_state(row) == said


def test_verify_says_that_it_adds_up(agent: Device) -> None:
    done = outbox(agent, "verify", "--deep")
    assert done.returncode == 0
    assert "it adds up" in done.stdout
    assert done.stderr == "", "no progress where no terminal is"
    report = document(agent, "verify")
    assert (report["balanced"], report["offline"]) == (True, False)


def test_drop_asks_first_and_counts(agent: Device) -> None:
    before = agent.ledger(SEGMENTS)
    first = str(document(agent, "show", SEGMENTS)["records"][0]["seq"])
    order = ("drop", SEGMENTS, first, "--reason", "dull")
    done = outbox(agent, *order)
    assert done.returncode == 1
    assert "say it with --yes" in done.stderr
    for said, held in ((b"n\n", before["held"]), (b"y\n", before["held"] - 1)):
        master, terminal = pty.openpty()
        os.write(master, said)
        done = outbox(agent, *order, stdin=terminal)
        os.close(terminal)
        os.close(master)
        assert f"Give up #{first} of {SEGMENTS} for good?" in done.stdout + done.stderr
        assert agent.ledger(SEGMENTS)["held"] == held
    assert document(agent, *order, "--yes") == {"dropped": 0}
    assert agent.ledger(SEGMENTS)["dropped"] == {"operator": 1}
    assert "gave up 1 record of" in agent.log.read_text()
    assert outbox(agent, "drop", SEGMENTS, first).returncode == 2, "without a reason"


def test_retry_of_nothing_and_of_what_cannot_be(agent: Device) -> None:
    assert document(agent, "retry", "inbox.raw") == {
        **{"retrying": 0, "sending": 0, "damaged": [], "listening": True}
    }
    done = outbox(agent, "retry", "inbox.raw", "1")
    assert (done.returncode, "#1: no dead letter" in done.stderr) == (1, True)


@pytest.mark.parametrize("name", ["nix", "a/b", "ä", "%", ".."])
def test_a_stream_that_is_not_there_is_said(agent: Device, name: str) -> None:
    done = outbox(agent, "show", name)
    assert done.returncode == 1
    assert "no stream" in done.stderr, done.stderr
    assert "outbox ls" in done.stderr


def test_a_dead_letter_of_a_running_agent_is_heard_again(tmp_path: Path) -> None:
    """It died of a sick worker: the store says so, the agent is told to try again."""
    device = hearing(tmp_path)
    with running(device):
        all_is_kept(device)
        assert device.stop() == 0
    with sqlite3.connect(device.store) as db:
        (stream, produced) = db.execute(
            "SELECT id, produced FROM streams WHERE name = 'inbox.raw'"
        ).fetchone()
        db.execute(
            "INSERT INTO chunks SELECT (max(id) >> 12) + 1 << 12, 0, zeroblob(16000) FROM chunks"
        )
        db.create_function("crc32", 1, zlib.crc32)
        db.execute("UPDATE chunks SET crc = crc32(data) WHERE id = (SELECT max(id) FROM chunks)")
        body = json.dumps(
            {"take": 1, "name": "fan.flac", "offset": 999999, "samples": 8000, "end": False}
        ).encode()
        ((blob, boot),) = db.execute(
            "SELECT max(chunks.id) >> 12, max(boot) FROM chunks, boots"
        ).fetchall()
        key, kind, size = streams.key(stream, produced + 1), RecordType.RAW, 16000
        row = streams.row(stream, produced + 1, kind, Stamp(boot, 0, 0), body, blob, size)
        assert row[0] == key
        streams.insert(db, [row])
        db.execute(
            "UPDATE streams SET produced = produced + 1, held = held + 1, bytes = bytes + ?"
            " WHERE id = ?",
            (len(body) + 16000, stream),
        )
        db.execute("UPDATE positions SET next_seq = ?", (produced + 2,))
        db.execute(
            "INSERT INTO dead (stream, seq, cause) VALUES (?, ?, 'sick')", (stream, produced + 1)
        )
    db.close()
    with running(device):
        until(lambda: "dead_letters" in str(device.status()["conditions"]), "it is said")
        assert "1 dead" in outbox(device, "ls").stdout
        assert "dead: sick" in outbox(device, "show", "inbox.raw", "--dead").stdout
        done = outbox(device, "retry", "inbox.raw", str(produced + 1))
        assert done.stdout == "inbox.raw: dead letters to be tried again: 1\n"
        until(lambda: device.ledger("inbox.raw")["held"] == 0, "it was heard")
        until(lambda: "dead_letters" not in str(device.status()["conditions"]), "nobody speaks")
        assert document(device, "verify", "--deep")["balanced"]


def test_without_an_agent_ls_and_verify_read_the_store_in_place(tmp_path: Path) -> None:
    device = hearing(tmp_path)
    assert outbox(device, "ls").returncode == 3, "there is not even a store"
    with running(device):
        all_is_kept(device)
        wanted = Checked(device.socket).get("/api/v1/outbox")
        device.kill()
    found = document(device, "ls")
    assert found["offline"]
    assert [(s["name"], s["held"]) for s in found["streams"]] == [
        (s["name"], s["held"]) for s in wanted["streams"]
    ]
    assert outbox(device, "ls").stdout.startswith("NO AGENT RUNS.")
    assert document(device, "verify", "--deep")["balanced"]
    for command in (("show", SEGMENTS), ("retry", "inbox.raw")):
        assert outbox(device, *command).returncode == 3
    with sqlite3.connect(device.store) as db:
        db.execute("UPDATE streams SET held = held + 1 WHERE name = ?", (SEGMENTS,))
    db.close()
    done = outbox(device, "verify")
    assert done.returncode == 6
    assert "IT DOES NOT ADD UP" in done.stdout
    assert document(device, "verify", code=6)["faults"]


def test_a_store_whose_agent_serves_elsewhere_is_left_alone(tmp_path: Path) -> None:
    device = hearing(tmp_path)
    with running(device):
        text = device.config.read_text().replace("holdfast.sock", "other.sock")
        other = tmp_path / "other.yaml"
        other.write_text(text)
        device.config = other
        done = outbox(device, "ls")
    assert done.returncode == 75
    assert "an agent holds this store" in done.stderr
