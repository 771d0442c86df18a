"""The devices of bench/crowd.py, in processes of their own, and how to talk to all of them."""

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Any, Self

import uvloop
from msgspec import Struct

from tests.sim.crowd import Sender, add_records, crowd_of

PROCESSES = 2
LINK = {
    "heartbeat_s": 10.0,
    "batch_records_max": 50,
    "ack_timeout_s": 10.0,  # what comes before an ingest is back, the broker takes and forgets
}


class State(Struct, frozen=True):
    """Sums over devices. `back` has, of each, the moment when it was connected last (monotonic)."""

    produced: int
    delivered: int
    up: int
    dead: int
    back: list[float]

    @property
    def held(self) -> int:
        """Records that are not acknowledged yet."""
        return self.produced - self.delivered

    def plus(self, other: "State") -> "State":
        """Both in one."""
        return State(
            self.produced + other.produced,
            self.delivered + other.delivered,
            self.up + other.up,
            self.dead + other.dead,
            self.back + other.back,
        )


def crowd(url: str, first: int, count: int, pipe: Pipe) -> None:
    """A process: connect so many, and do as the pipe says."""
    logging.disable()  # each device would tell that its broker is gone
    uvloop.run(_crowd(url, first, count, pipe))


async def _crowd(url: str, first: int, count: int, pipe: Pipe) -> None:
    loop = asyncio.get_running_loop()
    adding: asyncio.Task[None] | None = None
    async with crowd_of(Sender, url, count, first, **LINK) as devices:
        pipe.send(None)
        while True:
            word, number = await loop.run_in_executor(None, pipe.recv)
            if word == "fill":
                for device in devices.devices:
                    device.shelf.fill(int(number))
            elif word == "live":
                adding = asyncio.create_task(add_records(devices.devices, number))
            elif word == "stop" and adding:
                adding.cancel()
            pipe.send(_names(devices.devices) if word == "names" else _state(devices.devices))


def _state(devices: Sequence[Sender]) -> State:
    shelves = [device.shelf for device in devices]
    return State(
        sum(shelf.produced for shelf in shelves),
        sum(shelf.delivered for shelf in shelves),
        sum(device.up for device in devices),
        sum(len(shelf.dead) for shelf in shelves),
        [device.served[-1] for device in devices],
    )


def _names(devices: Sequence[Sender]) -> dict[str, int]:
    return {device.name: device.shelf.produced for device in devices}


class Devices:
    """So many, connected from the entry to the exit."""

    def __init__(self, url: str, count: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        share = count // PROCESSES
        self._pipes: list[Pipe] = []
        self._processes = []
        for i in range(PROCESSES):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=crowd, args=(url, i * share, share, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        """Their processes."""
        return [process.pid for process in self._processes if process.pid]

    def __enter__(self) -> Self:
        for pipe in self._pipes:
            pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def fill(self, count: int) -> None:
        """Each gets a backlog of so many records, at once."""
        self._ask("fill", count)

    def live(self, per_device_s: float) -> None:
        """Each makes so many live records a second, until `stop`."""
        self._ask("live", per_device_s)

    def stop(self) -> None:
        """No more live records."""
        self._ask("stop")

    def names(self) -> dict[str, int]:
        """How many records each device has made."""
        found: dict[str, int] = {}
        for some in self._ask("names"):
            found |= some
        return found

    def state(self) -> State:
        """Of all."""
        first, *rest = self._ask("state")
        for one in rest:
            first = first.plus(one)
        assert isinstance(first, State)
        return first

    def until(self, question: Callable[[State], bool], deadline_s: float) -> State:
        """Ask until it is so. Raises TimeoutError."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            found = self.state()
            if question(found):
                return found
            time.sleep(0.1)
        raise TimeoutError(f"not within {deadline_s} s; at the end {found.held} records were held")

    def _ask(self, word: str, number: float = 0) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((word, number))
        return [pipe.recv() for pipe in self._pipes]
