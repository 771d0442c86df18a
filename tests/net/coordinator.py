"""The coordinator: starts a device, a bad line, a broker and a cloud, hurts them, and judges.

It stands outside: of the device it knows what was said when a record was accepted, and the ledger
in the store's file after the end; of the cloud it knows the database. Pass is

    at the device   produced = delivered + held + dropped
    at the cloud    stored + told + missing = produced, and missing = 0 once all is well again

with no record stored twice, each one's body and blob as they were accepted, and nothing told as
dropped that had no leave to be.
"""

import hashlib
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec

from agent.errors import HoldfastError
from agent.records import Range
from tests.net.clouds import Fleet, Name, Postgres, Sqlite
from tests.net.device import GAUGE, SCRAP, STORE, STREAMS, digest
from tests.net.proxy import Proxy
from tests.outside import Device, Mosquitto, until

LONG = os.environ.get("HOLDFAST_LONG") == "1"
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
DEVICE = "device-under-test"
MAY_BE_DROPPED = {SCRAP: {"evicted"}, GAUGE: {"restart"}}
QUICK = {
    "ack_from": "ingest",
    "backoff_s_min": 0.05,
    "backoff_s_max": 0.3,
    "ack_timeout_s": 3,
    "connect_timeout_s": 5,
    "keepalive_s": 5,
    "heartbeat_s": 1,
    "tries_max": 100,  # the line is to blame, whatever it does to a record
}


class Broker(Protocol):
    """What serves MQTT on a port and can be killed."""

    port: int

    def start(self) -> None:
        """Start it and wait until it listens."""

    def kill(self) -> None:
        """kill -9."""

    def dead(self) -> bool:
        """Whether it does not run."""


class Balance(msgspec.Struct):
    """A row of the ledger, as the file has it."""

    produced: int
    delivered: int
    held: int
    dropped: dict[str, int]


class Site:
    """All the parts, started with `with`; `faults` is the verdict."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: object = SEED,
        broker: Broker | None = None,
        database: str | None = None,
        records: int = 10**9,
        rest_s: float = 0.005,
        device_id: str = DEVICE,
        **link: Any,
    ) -> None:
        """`database`: a PostgreSQL's URL; then two ingests write into it, else one into SQLite.

        `records` is how many a life of the device makes; `link` overrides its settings.
        """
        print(f"HOLDFAST_SEED={SEED}")
        self.folder = folder
        self.broker = broker or Mosquitto(folder)
        self.proxy = Proxy(self.broker.port)
        link = {**QUICK, "broker_url": self.proxy.url, **link}
        self.device = Device(
            folder,
            {
                "device_id": device_id,
                "link": link,
                "store": {"path": str(folder / "var" / "holdfast.db"), **STORE},
            },
        )
        self.device.said = folder / "said.log"
        self.device.command = [
            *(sys.executable, "-m", "tests.net.device", str(self.device.config), str(seed)),
            *("--records", str(records), "--rest", str(rest_s)),
        ]
        port = self.broker.port
        where = (folder, port, device_id)
        self.cloud: Fleet = Postgres(*where, database) if database else Sqlite(*where)
        self._stop = folder / "stop"

    def __enter__(self) -> Self:
        try:
            for part in (self.broker, self.proxy, self.cloud, self.device):
                part.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self.device, self.cloud, self.proxy, self.broker):
            part.kill()

    # What goes on meanwhile.

    def lines(self) -> list[list[str]]:
        """What the device said so far, whole lines only, as words."""
        text = self.device.said.read_text() if self.device.said.exists() else ""
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]

    def made(self) -> int:
        """How many records the device accepted, over all its lives."""
        accepted = ("appended", "taken")
        return sum(len(words) - 3 for words in self.lines() if words and words[0] in accepted)

    def last_seqs(self) -> dict[str, int]:
        """Of each stream the last seq that was accepted by now."""
        accepted = [words for words in self.lines() if words[:1] in (["appended"], ["taken"])]
        return {words[1]: int(words[2]) + len(words) - 4 for words in accepted}

    def makes(self, count: int) -> None:
        """Wait until it has accepted so many more."""
        before = self.made()
        self.until(lambda: self.made() >= before + count, f"{count} more records are made")

    def makes_all(self) -> None:
        """Wait until this life has accepted all that it was to make."""
        self.until(lambda: self.lines()[-1:] == [["made"]], "all records are made")

    def stores(self, count: int) -> None:
        """Wait until the cloud has stored so many more."""
        before = self.cloud.count()
        self.until(lambda: self.cloud.count() >= before + count, f"{count} more are stored")

    def passes(self, size: int) -> None:
        """Wait until so many more bytes went up the line."""
        before = self.proxy.up.carried_bytes
        self.until(
            lambda: self.proxy.up.carried_bytes >= before + size, f"{size} bytes more went up"
        )

    def linked(self, *, up: bool = True) -> None:
        """Wait until the device says that its link is up; or that it is down."""
        word = "up" if up else "down"
        self.until(lambda: self._link("connected") is up, f"the link is {word}")

    def _link(self, key: str) -> Any:
        return self.device.status()["link"][key]

    def holds(self, condition: str) -> None:
        """Wait until the device says so of itself."""
        self.until(lambda: self.remedy(condition), f"the condition {condition}")

    def remedy(self, condition: str) -> str:
        """What the device says to do about it; "": it does not hold."""
        told = {one["name"]: one["remedy"] for one in self.device.status()["conditions"]}
        return str(told.get(condition, ""))

    def until(self, question: Callable[[], object], what: str) -> None:
        """Wait for something while the device lives, and no ingest ends by itself."""
        until(lambda: self._ended() or question(), what)
        assert not self._ended(), self._ended()

    def _ended(self) -> str:
        """The log of what ended by itself; "": nothing has."""
        parts = [part for part in self.cloud.parts if part.fell()]
        logs = [part.log for part in parts] + ([self.device.log] if self.device.dead() else [])
        return "".join(log.read_text()[-4000:] for log in logs)

    # The end.

    def recover(self, *, heal: bool = True) -> None:
        """All is well again: wait until the last record is acknowledged, and all that was dropped.

        With `heal=False` the line stays as it is.
        """
        self._stop.touch()
        if heal:
            self.proxy.heal()
        for part in (self.broker, self.cloud, self.device):
            if part.dead():
                part.start()
        self.until(lambda: self.lines()[-1:] == [["done"]], "the last record is made")
        self.until(lambda: self._held() == 0, "everything is acknowledged")
        self.until(lambda: not self._uncovered(), "the cloud knows of every seq")
        self.device.kill()

    def _held(self) -> int:
        try:
            ledger = self.device.status()["ledger"]
        except HoldfastError:
            return -1
        return sum(balance["held"] for balance in ledger.values())

    def _uncovered(self) -> int:
        """How many seqs the cloud knows nothing of."""
        produced = sum(of["produced"] for of in self.device.status()["ledger"].values())
        known = 0
        for name in self.cloud.names():
            stored = {one.seq for one in self.cloud.stored(name)}
            known += len(stored | covered(self.cloud.told(name)))
        return int(produced) - known

    def faults(self) -> list[str]:
        """The verdict, once the device is dead: what is wrong, one sentence each."""
        found = []
        ledger = self.ledger()
        if unknown := self.cloud.names() - set(ledger):
            found.append(f"the cloud has streams that the device has not: {unknown}")
        for name, balance in ledger.items():
            found += self._balance(name, balance)
            found += self._coverage(name, balance)
        found += self._noted(*ledger)
        print(self._summary(ledger))
        return found

    def ledger(self) -> dict[Name, Balance]:
        """The device's side, from the file."""
        with closing(sqlite3.connect(self.device.store)) as db:
            (own,) = db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
            rows = db.execute(
                "SELECT id, epoch, name, produced, delivered, held FROM streams"
            ).fetchall()
            reasons = db.execute("SELECT stream, reason, count FROM dropped").fetchall()
        return {
            (epoch or own, called): Balance(
                *counts, {why: count for stream, why, count in reasons if stream == key}
            )
            for key, epoch, called, *counts in rows
        }

    def _balance(self, name: Name, of: Balance) -> list[str]:
        """The device's equation, and what had no leave to be dropped."""
        found = []
        if of.produced != of.delivered + of.held + sum(of.dropped.values()):
            found.append(f"{name[1]}: the ledger does not balance: {of}")
        if wrong := set(of.dropped) - MAY_BE_DROPPED.get(name[1], set()):
            found.append(f"{name[1]}: dropped as {wrong}: {of.dropped}")
        return found

    def _coverage(self, name: Name, of: Balance) -> list[str]:
        """The cloud's equation: each seq is stored, told or missing, and stored once."""
        found = []
        seqs = [one.seq for one in self.cloud.stored(name)]
        stored = set(seqs)
        told = covered(self.cloud.told(name)) - stored  # a record wins
        missing = set(range(1, of.produced + 1)) - stored - told
        if seqs != sorted(stored):
            found.append(f"{name[1]}: stored twice, or out of order: {twice(seqs)}")
        if missing:
            held = f"{of.held} of them may be held"
            found.append(f"{name[1]}: {len(missing)} missing, {held}: {sorted(missing)[:5]}")
        if beyond := {seq for seq in stored | told if seq > of.produced}:
            found.append(f"{name[1]}: the cloud has {sorted(beyond)[:5]}, beyond {of.produced}")
        if of.delivered > len(stored):
            found.append(f"{name[1]}: {of.delivered} delivered, {len(stored)} are stored")
        if len(told) > sum(of.dropped.values()):
            found.append(f"{name[1]}: {len(told)} told as dropped, the ledger says {of.dropped}")
        return found

    def _noted(self, *names: Name) -> list[str]:
        """Each record is what was accepted at its seq, with its blob; and none is there twice."""
        found: list[str] = []
        accepted = self._accepted(found)
        ids: Counter[str] = Counter()
        for name in (one for one in names if one[1] != "watchdog"):  # the agent's own
            for one in self.cloud.stored(name):
                body, where = msgspec.json.decode(one.body), f"{name[1]} {one.seq}"
                ids[body["id"]] += 1
                if accepted.get((name[1], one.seq), digest(body)) != digest(body):
                    found.append(f"{where}: another record than was accepted")
                if hashlib.sha256(one.blob).hexdigest() != body["sha256"]:
                    found.append(f"{where}: {len(one.blob)} bytes that are not its blob")
        if again := [one for one, times in ids.items() if times > 1]:
            found.append(f"stored at two places: {again[:5]}")
        produced = {name[1]: of.produced for name, of in self.ledger().items()}
        found += [
            f"{stream} {seq}: accepted, and beyond what was produced"
            for stream, seq in accepted
            if seq > produced.get(stream, 0)
        ]
        return found

    def _accepted(self, found: list[str]) -> dict[tuple[str, int], str]:
        """The digest of each record that the device said it had accepted."""
        accepted: dict[tuple[str, int], str] = {}
        for words in self.lines():
            match words:
                case ["appended" | "taken", stream, first, *digests]:
                    for seq, one in enumerate(digests, int(first)):
                        if (stream, seq) in accepted:
                            found.append(f"{stream} {seq} was given out twice")
                        accepted[stream, seq] = one
        if not {stream for stream, _ in accepted} >= set(STREAMS):
            found.append("some streams never had a record: the test shows nothing")
        return accepted

    def _summary(self, ledger: dict[Name, Balance]) -> str:
        produced = sum(of.produced for of in ledger.values())
        dropped = sum(sum(of.dropped.values()) for of in ledger.values())
        return (
            f"{produced} produced, {dropped} dropped, {self.cloud.count()} stored; "
            f"{self.proxy.accepted} connections, {self.proxy.up.carried_bytes} bytes up"
        )


def covered(ranges: list[Range]) -> set[int]:
    """The seqs of some ranges."""
    return {seq for span in ranges for seq in range(span.first, span.last + 1)}


def twice(seqs: list[int]) -> list[int]:
    """Seqs that come more than once, a few of them."""
    return [seq for seq, times in Counter(seqs).items() if times > 1][:5]
