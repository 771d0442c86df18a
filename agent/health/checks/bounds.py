"""Whether a domain keeps its pace, and processes their memory."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from agent.clock import Clock
from agent.config import Models
from agent.health.checks.check import Check, Verdict
from agent.health.checks.inference import WINDOW_S, Ran
from agent.inference.domains.domain import Domain

SLOWER = 4  # times as slow as at its best is worth a look
NOISE_S = 0.010  # below which the machine's own hiccups are all there is to see
WAITS = 0.5  # of `request_timeout_s`: then the first calls are soon too late
NEAR = 0.9  # of a bound
AGENT_BYTES_MAX = 1 << 30  # the agent takes a tenth of it, and a quarter for bodies under way
CACHED = 1.25  # what a byte of an answer in the cache takes, at most
CHILD_PART_MAX = 0.5  # of the machine's memory, where memory_bytes_max is not set
SLOW = "see what else runs on this machine, and how hot it is"
MIB = 1 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def p95(values: Sequence[float]) -> float:
    """What 95 % of them do not exceed; 0 of none."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1] if values else 0.0


def compute(domain: str, ran: Ran, clock: Clock) -> Check:
    """The same small inference, now and then: against its budget, or its best."""
    budget_ms, last_s = ran.model.manifest.latency_ms_max, ran.last_s(clock.monotonic())
    found_ms = p95(last_s) * 1000
    bound_ms = budget_ms or max(SLOWER * ran.best_s, NOISE_S) * 1000
    whose = "latency_ms_max" if budget_ms else f"{SLOWER} times its shortest, or 10"
    return Check(
        "compute",
        f"{domain}/{ran.model.manifest.name}",
        "warn" if found_ms > bound_ms else "pass",
        f"p95 {found_ms:.3f} ms of the last {len(last_s)}",
        f"at most {bound_ms:.3f} ms ({whose})",
        remedy=SLOW if found_ms > bound_ms else "",
    )


def queue(domain: Domain, clock: Clock) -> Check:
    """How long the calls of the last minutes waited for a process."""
    oldest_s = clock.monotonic() - WINDOW_S
    waits_s = [
        one.times.sent_s - one.times.arrived_s
        for one in domain.figures.traces()
        if one.times.sent_s and one.times.arrived_s >= oldest_s
    ]
    found_s, bound_s = p95(waits_s), WAITS * domain.settings.request_timeout_s
    return Check(
        "queue",
        domain.name,
        "warn" if found_s > bound_s else "pass",
        f"p95 {found_s * 1000:.3f} ms of the last {len(waits_s)}, {domain.waiting} wait now",
        f"at most {bound_s * 1000:.0f} ms (half of request_timeout_s)",
        remedy="raise its instances, or ask less of it" if found_s > bound_s else "",
    )


def memory(domain: Domain) -> Check:
    """The largest of its processes."""
    sizes = [_resident_bytes(one.pid) for one in domain.instances if one.pid]
    most = domain.settings.memory_bytes_max
    bound = most or int(CHILD_PART_MAX * PAGE_BYTES * os.sysconf("SC_PHYS_PAGES"))
    whose = "memory_bytes_max" if most else "half of the machine's memory"
    remedy = f"raise domains.{domain.name}.memory_bytes_max, or send less at once"
    return _memory(domain.name, max(sizes, default=0), bound, whose, remedy)


def own_bytes() -> int:
    """Memory of this process alone, without what it shares with those of its domains."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * PAGE_BYTES


def own_bytes_max(settings: Models) -> int:
    """What this process may have: its own bound, and a cache that is larger than the usual one."""
    more_bytes = max(0, settings.cache_bytes_max - Models().cache_bytes_max)
    return AGENT_BYTES_MAX + int(CACHED * more_bytes)


def own_memory(bound_bytes: int) -> Check:
    """The agent itself."""
    remedy = "report it, with what `holdfast status --json` says; a restart gives it back"
    return _memory("agent", own_bytes(), bound_bytes, "a bound of the agent's", remedy)


def _memory(subject: str, size: int, bound: int, whose: str, remedy: str) -> Check:
    verdict: Verdict = "fail" if size > bound else "warn" if size > NEAR * bound else "pass"
    return Check(
        "memory",
        subject,
        verdict,
        f"{size / MIB:,.0f} MiB",
        f"at most {bound / MIB:,.0f} MiB ({whose})",
        remedy="" if verdict == "pass" else remedy,
    )


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):  # it has just ended: another check says so
        return 0
