"""The agent as it is, but for its domain, with somebody in it who makes records until told to stop.

    python -m tests.net.device CONFIG SEED [--records N] [--rest S]

It says what it was promised, one line a fact, after the call returned:

    life                             the store is open
    appended STREAM FIRST DIGEST...  records FIRST.. are held, each with its digest
    taken STREAM FIRST DIGEST...     the same, but volatile: a restart may take them
    made                             the N records of this life are made
    done                             somebody made the file `stop` beside the configuration, and
                                     each stream got a last record
"""

import argparse
import asyncio
import ctypes
import hashlib
import os
import random
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from agent import config_file, logs
from agent.app import App
from agent.records import RecordType
from agent.store.intake import Durability, New

ALARMS, READINGS, CLIPS, GAUGE, SCRAP = "alarms", "readings", "cam.segments", "gauge", "scrap"
STREAMS = [ALARMS, READINGS, READINGS, READINGS, CLIPS, GAUGE, SCRAP]  # as often as they come
STORE: dict[str, Any] = {
    "when_full": "evict",
    "volatile_s": 0.1,
    "streams": [
        {"match": ALARMS, "priority": 9},
        {"match": GAUGE, "priority": 3, "durability": "volatile"},
        {"match": SCRAP, "priority": 1, "bytes_max": 65_536},
    ],
}
RECORDS_MAX = 4  # of one append


def digest(body: Any) -> str:
    """What a record is known by, however its JSON is written."""
    return hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()[:16]


def say(*words: object) -> None:
    """One fact, in one write."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Producer:
    """Makes records of several kinds, at random by seed."""

    def __init__(self, app: App, chance: random.Random, life: str) -> None:
        self._app = app
        self._chance = chance
        self._life = life
        self._made = 0

    async def run(self, stop: Path, records: int, rest_s: float) -> None:
        """Make so many records, then wait for the file `stop` and make the last ones."""
        say("\nlife")  # on a line of its own, whatever the last life was about to say
        while self._made < records and not stop.exists():
            await self._append(self._chance.choice(STREAMS), self._chance.randint(1, RECORDS_MAX))
            await asyncio.sleep(rest_s)
        say("made")
        while not stop.exists():
            await asyncio.sleep(0.02)
        for stream in sorted(set(STREAMS)):  # so that each has had one
            await self._append(stream, 1, Durability.GROUP)
        say("done")

    async def _append(self, stream: str, count: int, durability: Durability | None = None) -> None:
        found = [self._record(stream) for _ in range(count)]
        new = [New(RecordType.SEGMENT, msgspec.json.encode(body), blob) for body, blob in found]
        receipt = await self._app.store.intake.append(stream, new, durability)
        word = "taken" if stream == GAUGE else "appended"
        say(word, stream, receipt.first, *(digest(body) for body, _ in found))

    def _record(self, stream: str) -> tuple[dict[str, Any], bytes]:
        """A record that can be checked by whoever has only itself."""
        self._made += 1
        blob = b""
        if stream == CLIPS:
            blob = self._chance.randbytes(self._chance.choice([1, 3_000, 20_000, 90_000]))
        elif stream == SCRAP:
            blob = self._chance.randbytes(3_000)
        body = {
            "id": f"{self._life}/{self._made}",
            "value": self._chance.random(),
            "note": "x" * self._chance.choice([0, 20, 400]),
            "sha256": hashlib.sha256(blob).hexdigest(),
            "size_bytes": len(blob),
        }
        return body, blob


def lives(folder: Path) -> int:
    """How many lives there were before this one."""
    number = len(list(folder.glob("life-*")))
    (folder / f"life-{number}").touch()
    return number


async def main(given: argparse.Namespace) -> None:
    """The agent and its producer, until it is killed."""
    app = App(config_file.load(given.config), given.config)
    left_out = [app.inference.domains.run, app.inference.runner.run]
    loops = [loop for loop in app._loops() if loop not in left_out]
    life = f"{given.seed}:{lives(given.config.parent)}"
    producer = Producer(app, random.Random(life), life)
    async with AsyncExitStack() as parts:
        for part in (app.store, app.health.flash, app.link.control, app.doors.server):
            await parts.enter_async_context(part)
        if app.link.puts:
            await parts.enter_async_context(app.link.puts)
        stop = given.config.with_name("stop")
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(loop())
            group.create_task(producer.run(stop, given.records, given.rest))


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it dies with the test
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("seed")
    parser.add_argument("--records", type=int, default=10**9)
    parser.add_argument("--rest", type=float, default=0.005)
    logs.begin("info")
    uvloop.run(main(parser.parse_args()))
