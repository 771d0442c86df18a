"""What `/metrics` says of processes: the agent's own under the standard names, the children's by
their domain, without ids that come and go.

Limits  : as many lines as there are domains.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
from prometheus_client import Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from agent.inference.domains.domain import Domain

Started = tuple[int, float]  # a process: its id, and when it began


class ProcessMetrics:
    """Reads /proc when a scraper asks; remembers the time of processes that have ended."""

    def __init__(self, domains: Callable[[], list[Domain]]) -> None:
        self._domains = domains
        self._own = ProcessCollector(registry=None)
        self._spent_s: dict[str, float] = {}  # by domain
        self._seen_s: dict[Started, float] = {}  # CPU time of those that run

    def collect(self) -> Iterator[Metric]:
        """Every family, with what it means and its type."""
        yield from self._own.collect()
        labels = ["domain"]
        memory = GaugeMetricFamily(
            "holdfast_domain_resident_memory_bytes", "Memory of its processes.", labels=labels
        )
        files = GaugeMetricFamily(
            "holdfast_domain_open_fds", "File descriptors of its processes.", labels=labels
        )
        began = GaugeMetricFamily(
            "holdfast_domain_start_time_seconds",
            "When the youngest of its processes began, since 1970.",
            labels=labels,
        )
        cpu = CounterMetricFamily(
            "holdfast_domain_cpu_seconds",
            "CPU time of its processes, those that have ended included as last seen.",
            labels=labels,
        )
        seen: dict[Started, float] = {}
        for one in self._domains():
            domain = one.name
            rows = [row for i in one.instances if i.pid and (row := self._read(i.pid))]
            memory.add_metric([domain], sum(row[1] for row in rows))
            files.add_metric([domain], sum(row[2] for row in rows))
            if rows:
                began.add_metric([domain], max(process[1] for process, *_ in rows))
            more_s = sum(cpu_s - self._seen_s.get(process, 0.0) for process, *_, cpu_s in rows)
            spent_s = self._spent_s[domain] = self._spent_s.get(domain, 0.0) + max(0.0, more_s)
            cpu.add_metric([domain], spent_s)
            seen |= {process: cpu_s for process, *_, cpu_s in rows}
        self._seen_s = seen
        yield from (memory, files, began, cpu)

    @staticmethod
    def _read(pid: int) -> tuple[Started, int, int, float] | None:
        """Memory, descriptors and CPU time of a process; None: it has ended."""
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                began = (pid, process.create_time())
                return began, process.memory_info().rss, process.num_fds(), sum(times[:2])
        return None
