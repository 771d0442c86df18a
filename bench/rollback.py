"""How soon a former version of the configuration is in force again.

The agent is the real one, `holdfast run`, with the model that ships, and asked over its socket as
the command does. Each figure runs from the order until the agent says that the version is in force
and the domain takes calls. What is put beside it as a ratio is what it may take.

hot_vs_5_s      `config rollback` of a change that takes no restart (log level, link, a domain's
                bounds); smaller is better, as in both
restart_vs_5_s  of one that takes a restart: the agent ends in order, and begins on the former
                version. Under systemd RestartSec (2 s) comes to that

`apply_hot_s`, `apply_restart_s`: the same for the way there. `taken_back_s`: from an order whose
version does not start (its port is taken) until the former one is in force again, by itself.
"""

import secrets
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from agent.cli.client import Client
from agent.errors import AgentUnreachable
from bench import report
from bench.memory import NOBODY
from bench.servers import free_port, running

CONFIG = "/api/v1/config"
WAIT_S = 60.0
POLL_S = 0.02
TIMES, TIMES_FULL = 3, 15
HOT = {
    "log_level": "warning",
    "link": {"heartbeat_s": 7.0},
    "domains": {"audio": {"models": ["speech"], "class": "realtime", "queue_max": 77}},
}
COLD = {"jobs": {"jobs_max": 77}}


class Site:
    """An agent under measurement."""

    def __init__(self, socket_path: Path) -> None:
        self._orders = Client(socket_path, WAIT_S)

    def order(self, what: str, **body: Any) -> float:
        """The seconds from an order until what is live is in force, and the domain is ready."""
        began_s = time.perf_counter()
        name = self._ordered(what, body)
        self.until(
            lambda found: (
                found["in_force"] == found["live"]
                and name in (one["order"] for one in found["steps"])
            )
        )
        return time.perf_counter() - began_s

    def applied(self, patch: dict[str, Any]) -> float:
        """The same of a patch, which is confirmed then."""
        took_s = self.order("apply", patch=patch, confirm_s=3600)
        self._ordered("confirm", {}, wait_s=WAIT_S / 2)
        return took_s

    def rolled_back(self) -> float:
        """The same of the way back."""
        took_s = self.order("rollback")
        self.until(lambda found: found["trial"] is None)
        return took_s

    def taken_back(self, patch: dict[str, Any]) -> float:
        """The seconds from an order that ends the agent until the former version is in force."""
        began_s = time.perf_counter()
        name = self._ordered("apply", {"patch": patch})
        self.until(
            lambda found: (
                found["in_force"] == found["live"]
                and (name, "taken_back") in ((s["order"], s["state"]) for s in found["steps"])
            )
        )
        return time.perf_counter() - began_s

    def _ordered(self, what: str, args: dict[str, Any], wait_s: float = 0.0) -> str:
        """The id of an order."""
        name = f"bench-{secrets.token_hex(8)}"
        order = {"id": name, "name": f"config.{what}", "args": args}
        self._orders.post(f"/api/v1/commands?wait_s={wait_s}", order)
        return name

    def until(self, question: Callable[[dict[str, Any]], bool]) -> None:
        """Ask how the versions are until that is so, and all domains are ready."""
        end_s = time.perf_counter() + WAIT_S
        while time.perf_counter() < end_s:
            try:
                if question(self._orders.get(CONFIG)) and self._ready():
                    return
            except AgentUnreachable:  # it begins anew
                pass
            time.sleep(POLL_S)
        raise TimeoutError(f"not within {WAIT_S:.0f} s")

    def _ready(self) -> bool:
        found = self._orders.get("/api/v1/domains")
        return all(one["ready"] for one in found.values())


@contextmanager
def site() -> Iterator[Site]:
    """The product, by hand: it begins anew by itself."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        folder, port = Path(name), free_port()
        settings = {
            "link": {"broker_url": NOBODY, "ack_from": "ingest"},
            "store": {"path": str(folder / "holdfast.db")},
            "api": {"port": port, "socket": str(folder / "holdfast.sock")},
        }
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        holdfast = Path(sys.executable).with_name("holdfast")
        with running([holdfast, "run", "--config", config], port):
            made = Site(folder / "holdfast.sock")
            made.until(lambda found: found["live"] == 1)
            yield made


def main() -> None:
    asked = report.options(__doc__).parse_args()
    times = TIMES_FULL if asked.full else TIMES
    took: dict[str, list[float]] = {
        name: [] for name in ("apply_hot", "hot", "apply_restart", "restart", "taken_back")
    }
    with site() as found, socket.create_server(("127.0.0.1", 0)) as taken:
        for _ in range(times):
            took["apply_hot"].append(found.applied(HOT))
            took["hot"].append(found.rolled_back())
            took["apply_restart"].append(found.applied(COLD))
            took["restart"].append(found.rolled_back())
            bad = {"api": {"port": taken.getsockname()[1]}}
            took["taken_back"].append(found.taken_back(bad))
    ratios = {
        "hot_vs_5_s": report.Ratio.of([one / 5 for one in took["hot"]], 1.0),
        "restart_vs_5_s": report.Ratio.of([one / 5 for one in took["restart"]], 1.0),
    }
    figures = {f"{name}_s": statistics.median(one) for name, one in took.items()}
    figures |= {f"{name}_s_max": max(took[name]) for name in ("hot", "restart", "taken_back")}
    report.Report.of("rollback", ratios, figures).show(as_json=asked.json)


if __name__ == "__main__":
    main()
