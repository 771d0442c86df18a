"""One agent at its work under a supervisor, a far side that stores, and what is seen from outside.

Sound comes from a recording that is played without end, and from two files: one before the fault,
the same once more while it lasts. Two callers ask a model again and again, another hands in jobs.
The far side (tests/e2e/judge.py) keeps what arrives in a database of its own and acknowledges it.
"""

import json
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from agent.cli.client import Client
from agent.errors import AgentSilent, AgentUnreachable, HoldfastError
from bench.faults_unit import Saw, Unit
from bench.models import hog, loop, tiny, write
from tests.e2e.judge import Judge
from tests.outside import ROOT, Mosquitto, until
from tests.store.faults.disk import Disk

DEVICE = "device-under-test"
RECORDING = ROOT / "samples" / "fan.flac"
LOOK_S = 0.25
PATIENCE_S = 60.0  # of a caller: longer than any remedy takes
CALL_PAUSE_S, JOB_PAUSE_S = 0.3, 1.0
READY_S, BACK_S = 120.0, 240.0
TINY = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [1] * 64}
Settings = Mapping[str, Any]


class Callers:
    """Two that call, and one that hands in jobs; what came of each."""

    def __init__(self, socket: Path) -> None:
        self.outcomes: Counter[str] = Counter()
        self.answered_s = 0.0  # when the last call was asked that had its answer
        self.jobs: list[str] = []
        self._client = Client(socket, PATIENCE_S)
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(what, pause_s), daemon=True)
            for what, pause_s in (
                (self._call, CALL_PAUSE_S),
                (self._call, CALL_PAUSE_S),
                (self._hand_in, JOB_PAUSE_S),
            )
        ]

    def start(self) -> None:
        """From now on."""
        for one in self._threads:
            one.start()

    def stop(self) -> None:
        """Let those who wait have their answers."""
        self._over.set()
        for one in self._threads:
            one.join()

    def _repeat(self, what: Callable[[], None], pause_s: float) -> None:
        while not self._over.wait(pause_s):
            what()

    def _call(self) -> None:
        asked_s = time.monotonic()
        try:
            self._client.post("/v2/models/tiny/infer", {"inputs": [TINY]})
            self.outcomes["answered"] += 1
            self.answered_s = max(self.answered_s, asked_s)
        except AgentUnreachable:
            self.outcomes["not accepted"] += 1
        except AgentSilent as error:
            self.outcomes["silence" if "does not answer" in str(error) else "cut off"] += 1
        except HoldfastError:
            self.outcomes["told"] += 1

    def _hand_in(self) -> None:
        with suppress(HoldfastError):
            job = self._client.post("/api/v1/jobs", {"model": "tiny", "inputs": [TINY]})
            self.jobs.append(job["id"])


class Site:
    """All of it in one folder; `with` starts it and waits until it is at its work."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        environment: Mapping[str, str],
        disk: Disk | None = None,
        holds: str = "",
    ) -> None:
        """`settings` are merged over those here; `disk` may be broken, and holds what is named."""
        self.folder = folder
        self.disk = disk
        self.socket = folder / "holdfast.sock"
        places = {name: folder / name for name in ("store", "inbox")}
        places["models"] = repository(folder / "models") if holds != "models" else folder
        if disk:
            places[holds] = disk.mount
        self.store, self.inbox = places["store"] / "holdfast.db", places["inbox"]
        self.inbox.mkdir(exist_ok=True)
        self.broker = Mosquitto(folder)
        self.judge = Judge(folder / "judge.db", self.broker.port, DEVICE)
        self.callers = Callers(self.socket)
        self._client = Client(self.socket, 2.0)
        config = folder / "config.yaml"
        hall = {"kind": "loop", "path": str(ROOT / "samples")}
        hall, settings = settings.get("hall", hall), {**settings}
        settings.pop("hall", None)
        whole = merged(self._settings(places["models"], hall), settings)
        config.write_text(yaml.safe_dump(whole))
        command = [sys.executable, "-P", "-m", "agent.cli.run", str(config)]
        self.fault = folder / "fault"
        faulty = {"PYTHONPATH": str(ROOT / "bench" / "faulty"), "HOLDFAST_FAULT": str(self.fault)}
        self.unit = Unit(folder, command, {**faulty, **environment}, ROOT)
        self.seen: list[Saw] = []
        self._known: set[str] | None = None  # what was said before the fault
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self.held: list[dict[str, Any]] = []  # conditions, as they were seen last; and so on
        self.status: dict[str, Any] = {}
        self.watched: dict[str, Any] = {}
        self.looked_s = 0.0  # all of what is seen is younger

    def _settings(self, models: Path, hall: Settings) -> dict[str, Any]:
        return {
            "device_id": DEVICE,
            "models": {"path": str(models)},
            "store": {"path": str(self.store)},
            "api": {"port": 0, "socket": str(self.socket)},
            "link": {
                "broker_url": self.broker.url,
                "ack_from": "ingest",
                "keepalive_s": 10,
                "backoff_s_min": 1,
                "backoff_s_max": 4,
                "heartbeat_s": 1,
            },
            "audio": {
                "sources": [
                    {"name": "hall", **hall},
                    {"kind": "folder", "name": "inbox", "path": str(self.inbox)},
                ]
            },
            "domains": {"calls": {"models": ["tiny"], "threads": 1}},
        }

    def __enter__(self) -> "Site":
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        self.broker.start()
        self.judge.start()
        self.unit.start()
        until(self.unit.ready.is_set, "the agent has begun", READY_S)
        self._watching.start()
        until(lambda: self.all_ready() and self.watched.get("fed"), "all is ready", READY_S)
        self.callers.start()
        self.drop("before.flac")
        until(lambda: self.heard("before.flac"), "the first file is taken", READY_S)
        self.look()
        until(lambda: self.ledger("inbox.raw")["held"] == 0, "all of it is heard", READY_S)
        until(lambda: self.callers.outcomes["answered"], "a call is answered", READY_S)
        until(lambda: self.ledger("inbox.segments")["delivered"], "something is sent", READY_S)
        self._known = set(self._said())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._watching.is_alive():
            self._watching.join()
        self.callers.stop()
        self.unit.stop()
        self.judge.stop()
        self.broker.kill()

    # What is seen.

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            with suppress(HoldfastError):
                asked_s = time.monotonic()
                self.held = self._client.get("/api/v1/conditions")["conditions"]
                self.watched = self._client.get("/api/v1/watchdog")
                self._note()
                self.status = self._client.get("/api/v1/status")  # it needs the store
                self._note()
                self.looked_s = asked_s

    def _note(self) -> None:
        if self._known is None:
            return
        for what in self._said():
            if what not in self._known:
                self._known.add(what)
                self.seen.append(Saw(time.monotonic(), what))

    def _said(self) -> Iterator[str]:
        yield from self.conditions()
        for name, domain in self.status["domains"].items():
            if domain["restarts"]:
                yield f"domain {name} began anew ({domain['restarts']})"
        for one in self._client.get("/api/v1/watchdog/history")["events"]:
            if one["event"]["remedy"] != "test":
                yield f"watchdog: {one['event']['part']}: {one['event']['remedy']} {one['at_us']}"

    def first_seen(self, since_s: float) -> Saw | None:
        """What showed the fault first, to the agent or to who watches over it."""
        found = [one for one in (*self.unit.saw, *self.seen) if one.at_s >= since_s]
        return min(found, default=None)

    def conditions(self) -> set[str]:
        """Those that hold now."""
        return {f"{one['name']} {one['subject']}" for one in self.held}

    def all_ready(self) -> bool:
        """Whether each domain is."""
        domains = self.status.get("domains", {})
        return bool(domains) and all(one["ready"] for one in domains.values())

    def pid_of(self, domain: str) -> int:
        """The process of a domain that serves."""
        return int(until(lambda: self.status["domains"][domain]["pid"], f"{domain} has a process"))

    def ledger(self, stream: str) -> dict[str, Any]:
        """One stream's balance as it was last seen."""
        nothing = {"produced": 0, "delivered": 0, "held": 0, "dropped": {}}
        found: dict[str, Any] = self.status["ledger"].get(stream, nothing)
        return found

    def progress(self) -> dict[str, int]:
        """What only grows while all is well."""
        heard = next((p["done"] for p in self.watched["parts"] if p["part"] == "source hall"), 0)
        return {"sound": self.ledger("hall.raw")["produced"], "heard": heard}

    # What is done.

    def ask(self, route: str, order: dict[str, Any] | None = None) -> dict[str, Any]:
        """Of the agent."""
        client = Client(self.socket, PATIENCE_S)
        return client.post(route, order) if order else client.get(route)

    def look(self) -> None:
        """Wait until all that is seen is younger than this."""
        now_s = time.monotonic()
        until(lambda: self.looked_s > now_s, "the agent is looked at", READY_S)

    def drop(self, name: str) -> None:
        """A recording appears in the folder, at once and whole."""
        unfinished = shutil.copy(RECORDING, self.inbox / f"{name}.part")
        Path(unfinished).rename(self.inbox / name)

    def heard(self, name: str) -> bool:
        """Whether a recording was taken in to its end."""
        return (self.inbox / "done" / name).exists()


def merged(base: Settings, over: Settings) -> dict[str, Any]:
    """`over` wins, key by key."""
    both = dict(base)
    for key, value in over.items():
        deeper = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        both[key] = merged(base[key], value) if deeper else value
    return both


def repository(folder: Path) -> Path:
    """The models that are called, and the one that hears."""
    for name, made in (("tiny", tiny), ("loop", loop), ("hog", hog)):
        write(folder, name, made())
    shutil.copytree(ROOT / "models" / "speech", folder / "speech")
    return folder


@contextmanager
def told(site: Site) -> Iterator[None]:
    """What nobody expected is told with what the agent said."""
    try:
        yield
    except (AssertionError, HoldfastError) as error:
        log = (site.folder / "agent.log").read_text(errors="replace")[-3000:]
        raise AssertionError(f"{error}\n{json.dumps(site.status)[:2000]}\n{log}") from error
