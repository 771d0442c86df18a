"""Out on a stick and back, with a real agent, a real database and, later, a real broker.

Judged from outside: by what the database of the cloud holds, and by the ledger of the device.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

from tests.cli.inbox import heard, inbox
from tests.e2e.judge import Judge
from tests.fleet.process import FLEET, IngestProcess
from tests.outside import (
    DEADLINE_S,
    ROOT,
    Device,
    Mosquitto,
    as_json,
    holdfast,
    running,
    until,
)
from tests.store.faults.disk import Disk, needs_fuse

STREAM = "inbox.segments"
SAMPLES = sorted((ROOT / "samples").glob("*.flac"))


class Site:
    """A device, a stick, and the office with its database and its key."""

    def __init__(self, folder: Path, broker_url: str, name: str = "d") -> None:
        self.office = folder / "office"
        self.stick = folder / "usb"
        for place in (self.office, self.stick):
            place.mkdir(exist_ok=True)
        self.base = ("--database", f"sqlite:///{self.office}/fleet.db")
        self.keys = (*self.base, "--key-file", str(self.office / "fleet.key"))
        key = self.fleet("key", *self.keys[2:])["key"]
        home = folder / name
        home.mkdir()
        link = {"broker_url": broker_url, "ack_from": "ingest", "ack_timeout_s": 5}
        self.device = Device(
            home,
            {
                **inbox(home),
                "device_id": name,
                "bundle": {"key_file": str(home / "device.key"), "fleet_keys": [key]},
                "link": {**link, "backoff_s_min": 0.1, "backoff_s_max": 0.5, "heartbeat_s": 0.5},
            },
        )

    def hear(self, *samples: Path) -> None:
        """Recordings come, and become segments."""
        for sample in samples:
            partial = self.device.folder / sample.name
            shutil.copy(sample, partial)
            partial.rename(self.device.folder / "inbox" / sample.name)
            done = self.device.folder / "inbox" / "done" / sample.name
            until(done.exists, "it is taken in")
        until(lambda: heard(self.device), "it is heard")

    def command(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """`holdfast bundle` at the device."""
        done = holdfast("bundle", *arguments, "--json", "--config", str(self.device.config))
        assert done.returncode == code, done.stdout + done.stderr
        found: dict[str, Any] = as_json(done)
        return found

    def fleet(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """`holdfast-fleet bundle` in the office."""
        done = subprocess.run(
            [str(FLEET), "bundle", *arguments, "--json"],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == code, done.stdout + done.stderr
        found: dict[str, Any] = as_json(done)
        return found

    def trust(self) -> None:
        """The office learns the device's key."""
        device = self.device.folder.name
        self.fleet("trust", device, self.command("key")["key"], *self.base)

    def export(self) -> Path:
        """The one file of a new export."""
        (file,) = self.command("export", str(self.stick))["files"]
        return Path(file["file"])

    def stored(self) -> list[int]:
        """The seqs of the stream that the office has, each as often as it has it."""
        with sqlite3.connect(self.office / "fleet.db") as db:
            rows = db.execute(
                "SELECT r.seq FROM records r JOIN streams s ON s.id = r.stream"
                " JOIN devices d ON d.id = s.device WHERE s.name = ? AND d.name = ? ORDER BY seq",
                (STREAM, self.device.folder.name),
            ).fetchall()
        db.close()
        return [seq for (seq,) in rows]

    def ledger(self) -> dict[str, Any]:
        """The device's, which balances."""
        found = self.device.ledger(STREAM)
        lost = sum(found["dropped"].values())
        assert found["produced"] == found["delivered"] + found["held"] + lost, found
        return found


def test_what_a_stick_carried_is_not_sent_again(tmp_path: Path) -> None:
    """Exported, imported twice, acknowledged; then the network comes, and carries the rest."""
    broker = Mosquitto(tmp_path)
    site = Site(tmp_path, broker.url)
    judge = Judge(tmp_path / "judge.db", broker.port, "d")
    with running(site.device):
        site.hear(*SAMPLES[:2])
        first = site.ledger()["held"]
        assert first > 5
        file = site.export()
        site.hear(SAMPLES[2])
        refused = site.fleet("import", str(file), *site.keys, code=7)
        assert refused["files"][0]["verdict"] == "unknown_key"
        site.trust()
        for new, known in ((first, 0), (0, first)):
            found = site.fleet("import", str(file), *site.keys)
            (one,) = found["files"]
            assert (one["records_new"], one["records_known"]) == (new, known)
        assert site.stored() == list(range(1, first + 1))
        produced = site.ledger()["produced"]
        assert (site.ledger()["held"], site.ledger()["delivered"]) == (produced, 0)
        assert produced > first
        for delivered in (first, 0):
            taken = site.command("import", str(site.stick))
            assert [one["delivered"] for one in taken["files"]] == [delivered]
        assert (site.ledger()["held"], site.ledger()["delivered"]) == (produced - first, first)
        with running(broker, judge):
            until(lambda: site.ledger()["held"] == 0, "the rest goes by the network")
            assert judge.seqs(STREAM) == list(range(first + 1, produced + 1))
            assert (judge.repeats, judge.faults) == (0, [])
        assert site.ledger()["delivered"] == produced


def test_stick_and_network_together_store_each_record_once(tmp_path: Path) -> None:
    """The network comes while the stick travels: the same database, the same records."""
    broker = Mosquitto(tmp_path)
    site = Site(tmp_path, broker.url)
    ingest = IngestProcess(tmp_path, broker.url, site.base[1])
    with running(site.device):
        site.hear(*SAMPLES[:2])
        site.trust()
        file = site.export()
        with running(broker, ingest):
            until(lambda: site.ledger()["held"] == 0, "the network was faster")
            site.hear(SAMPLES[2])
            until(lambda: site.ledger()["held"] == 0, "and goes on")
            ingest.stop()
        produced = site.ledger()["produced"]
        assert site.stored() == list(range(1, produced + 1))
        found = site.fleet("import", str(file), *site.keys)
        assert found["files"][0]["records_new"] == 0
        assert site.stored() == list(range(1, produced + 1))
        taken = site.command("import", str(site.stick))
        assert taken["files"][0]["verdict"] == "nothing_new"
        assert site.ledger()["delivered"] == produced


def test_acks_of_another_device_or_of_a_stranger_delete_nothing(tmp_path: Path) -> None:
    here, there = Site(tmp_path, "mqtt://127.0.0.1:1"), Site(tmp_path, "mqtt://127.0.0.1:1", "e")
    with running(here.device, there.device):
        for site in (here, there):
            site.hear(SAMPLES[0])
            site.trust()
        held = here.ledger()["held"]
        file = there.export()
        found = here.fleet("import", str(file), *here.keys)
        (answer,) = found["acks"]
        taken = here.command("import", answer, code=7)
        assert taken["files"][0]["verdict"] == "wrong_device"
        stranger = (*here.base, "--key-file", str(tmp_path / "stranger.key"))
        mine = here.fleet("import", str(here.export()), *stranger)["acks"]
        taken = here.command("import", *mine, code=7)
        assert taken["files"][0]["verdict"] == "stranger"
        assert (here.ledger()["held"], here.ledger()["delivered"]) == (held, 0)
        taken = there.command("import", str(there.stick), code=7)  # both lie there
        assert {one["verdict"] for one in taken["files"]} == {"taken", "stranger"}
        assert there.ledger()["held"] == 0


def test_a_device_killed_on_the_way_loses_nothing(tmp_path: Path) -> None:
    """Killed while it exports, and while it takes the acks."""
    site = Site(tmp_path, "mqtt://127.0.0.1:1")
    needs_fuse()
    with running(site.device), Disk(tmp_path / "disk") as disk:
        site.hear(*SAMPLES[:2])
        site.trust()
        produced = site.ledger()["produced"]
        disk.rule("*", ["write"], delay_s=0.05)
        command = ["bundle", "export", str(disk.mount), "--config", str(site.device.config)]
        with subprocess.Popen(
            [str(FLEET.with_name("holdfast")), *command], stderr=subprocess.PIPE
        ) as export:
            until(lambda: disk.hits() > 0, "it writes")
            os.kill(site.device.pid, signal.SIGKILL)
            _, said = export.communicate(timeout=DEADLINE_S)
        disk.clear()
        wholes = list(disk.mount.glob("*.hfb"))
        assert (export.returncode, wholes) in ((0, wholes), (8, [])), said
        site.device.kill()
        site.device.start()
        gone = holdfast(*command, "--continue")
        assert (gone.returncode, "begin one" in gone.stderr) == (1, True)
        assert site.ledger()["produced"] == produced
        (answer,) = site.fleet("import", str(site.export()), *site.keys)["acks"]
        command = ["bundle", "import", answer, "--config", str(site.device.config)]
        with subprocess.Popen(
            [str(FLEET.with_name("holdfast")), *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ):
            site.device.kill()
        site.device.start()
        site.command("import", answer)
        ledger = site.ledger()
        assert (ledger["delivered"], ledger["held"]) == (produced, 0)
        assert site.stored() == list(range(1, produced + 1))


def test_a_copy_that_was_cut_off_stores_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, "mqtt://127.0.0.1:1")
    with running(site.device):
        site.hear(SAMPLES[0])
        site.trust()
        file = site.export()
        whole = file.read_bytes()
        for share in (0.0, 0.3, 0.99):
            file.write_bytes(whole[: int(len(whole) * share)])
            found = site.fleet("import", str(file), *site.keys, code=7)
            assert (found["files"][0]["verdict"], found["acks"]) == ("cut_off", [])
        assert site.stored() == []
        file.write_bytes(whole)
        site.fleet("import", str(file), *site.keys)
        (taken,) = site.command("import", str(site.stick))["files"]
        produced = site.ledger()["produced"]
        assert taken["delivered"] == produced
        assert site.stored() == list(range(1, produced + 1))
