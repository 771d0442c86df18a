"""What processes use, seen from outside: CPU, memory, and the counters that an ingest shows."""

from collections.abc import Mapping
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families


class Usage:
    """CPU seconds of named groups of processes, with their children, from here on."""

    def __init__(self, pids: Mapping[str, list[int]]) -> None:
        self._pids = pids
        self._before = self._now()

    def seconds(self) -> dict[str, float]:
        """Of each group, since."""
        return {name: now - self._before[name] for name, now in self._now().items()}

    def _now(self) -> dict[str, float]:
        return {name: sum(map(_cpu_s, pids)) for name, pids in self._pids.items()}


def _cpu_s(pid: int) -> float:
    """User and system time, with that of children, also of those that ended."""
    process = psutil.Process(pid)
    spent = process.cpu_times()
    own = spent.user + spent.system + spent.children_user + spent.children_system
    return float(own + sum(_cpu_s(child.pid) for child in process.children()))


def rss_bytes(pids: list[int]) -> int:
    """Resident memory of these processes, without children."""
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


def counters(ports: list[int]) -> dict[str, float]:
    """The sums of the ingests' counters by name and first label, as `messages.up`, `acks`."""
    found: dict[str, float] = {}
    for port in ports:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    name = sample.name.removeprefix("holdfast_fleet_").removesuffix("_total")
                    key = ".".join([name, *sample.labels.values()])
                    found[key] = found.get(key, 0.0) + sample.value
    return found
