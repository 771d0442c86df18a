"""/metrics: what a scraper reads is what the store knows, in a form that it can read."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from agent.api.metrics import metrics
from agent.api.metrics.metrics import Metrics
from agent.clock import Clock
from agent.config import Store as Settings
from agent.health.conditions import Conditions
from agent.health.flash import Flash
from agent.health.status import Status
from agent.host.disk import Writes
from agent.records import Range, RecordType
from agent.store import arrivals
from agent.store.intake import New
from agent.store.latency import BOUNDS_S
from agent.store.store import Store
from agent.store.tensors import Part
from tests.host.sysfs import Kernel

ODD = 'odd "name"\\ of\na stream {x="y"}'
TYPES = {
    "holdfast_build_info": "gauge",
    "holdfast_uptime_seconds": "gauge",
    "holdfast_condition": "gauge",
    "holdfast_store_commit_seconds": "histogram",
    "holdfast_store_bytes_max": "gauge",
    "holdfast_link_connected": "gauge",
    "holdfast_link_paused": "gauge",
    "holdfast_link_sent_bytes": "counter",
    "holdfast_link_acknowledged_records": "counter",
    "holdfast_link_backlog_records": "gauge",
    "holdfast_link_backlog_bytes": "gauge",
    "holdfast_link_quota_bytes": "gauge",
    "holdfast_link_quota_used_bytes": "gauge",
    "holdfast_store_used_bytes": "gauge",
    "holdfast_store_written_bytes": "counter",
    "holdfast_store_payload_bytes": "counter",
    "holdfast_outbox_bytes": "gauge",
    "holdfast_ledger_streams_left_out": "gauge",
    "holdfast_ledger_records": "counter",
    "holdfast_ledger_dropped_records": "counter",
    "holdfast_ledger_held_records": "gauge",
    "holdfast_jobs": "gauge",
    "holdfast_jobs_bytes": "gauge",
    "holdfast_jobs_oldest_age_seconds": "gauge",
    "holdfast_jobs_attempts": "gauge",
    "holdfast_jobs_submitted": "counter",
    "holdfast_jobs_ended": "counter",
    "holdfast_jobs_removed": "counter",
    "holdfast_commands_accepted": "counter",
    "holdfast_commands_ended": "counter",
    "holdfast_commands_refused": "counter",
    "holdfast_commands_open": "gauge",
    "holdfast_commands_untold": "gauge",
}


LINK = {
    "connected": True,
    "paused": False,
    "sent_bytes": 12_345,
    "acknowledged_records": 67,
    "backlog": {"records": 8, "bytes": 9000},
    "quota": {"bytes_per_day": 1 << 20, "used_bytes": 4321},
}


class Bed(NamedTuple):
    store: Store
    conditions: Conditions
    kernel: Kernel
    metrics: Metrics
    link: dict[str, Any]


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    clock, kernel = Clock(), Kernel(tmp_path / "root", tmp_path)
    settings = Settings(path=str(tmp_path / "s.db"))
    conditions, store = Conditions(clock), Store(settings, clock)
    flash = Flash(settings, store.wear, conditions, clock, lambda path: Writes(path, kernel.root))
    status = Status(dict, conditions, clock, store.ledger.balances, {}, tmp_path / "status.json")
    async with store, flash:
        link = dict(LINK)
        shown = Metrics(status, conditions, store, flash, lambda: link)
        yield Bed(store, conditions, kernel, shown, link)


async def scraped(bed: Bed) -> dict[str, Metric]:
    text = (await bed.metrics.text())[0].decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(family: Metric, name: str | None = None) -> dict[tuple[str, ...], float]:
    """A family's values by its labels' values, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for sample in family.samples
        if name is None or sample.name == name
    }


async def fill(bed: Bed) -> None:
    """Three streams: one partly delivered, one with a dead letter and drops, one with odd words."""
    some = [New(RecordType.SEGMENT, b"{}", bytes(8))] * 5
    await bed.store.intake.append("a.segments", some)
    await bed.store.intake.append(ODD, some)
    await bed.store.spool.refuse("a", "full")
    await bed.store.outbox.lease(5, 1 << 20)
    await bed.store.outbox.acknowledge((bed.store.epoch, "a.segments"), [Range(1, 3)])


async def test_every_family_has_its_type_and_says_what_it_means(bed: Bed) -> None:
    await fill(bed)
    bed.conditions.hold("link_down", "link", "warning", "a", "b")
    found = await scraped(bed)
    assert {name: family.type for name, family in found.items()} == TYPES
    assert all(family.documentation for family in found.values())
    assert all(family.samples for family in found.values())


async def test_the_ledger_is_shown_as_the_store_has_it(bed: Bed) -> None:
    await fill(bed)
    found, ledger = await scraped(bed), await bed.store.ledger.balances()
    assert ledger.keys() == {"a.segments", "a.raw", ODD}
    assert values(found["holdfast_ledger_records"], "holdfast_ledger_records_total") == {
        (state, stream): getattr(one, state)
        for stream, one in ledger.items()
        for state in ("produced", "delivered")
    }
    assert values(found["holdfast_ledger_held_records"]) == {
        (stream,): one.held for stream, one in ledger.items()
    }
    assert values(found["holdfast_ledger_dropped_records"]) == {("full", "a.raw"): 1}
    assert values(found["holdfast_outbox_bytes"]) == {
        ("a.segments",): 20,
        ("a.raw",): 0,
        (ODD,): 50,
    }
    assert values(found["holdfast_store_payload_bytes"]) == {(): 100}
    assert values(found["holdfast_store_used_bytes"]) == {(): await bed.store.used_bytes()}
    assert values(found["holdfast_store_bytes_max"]) == {(): bed.store.bytes_max}
    assert values(found["holdfast_ledger_streams_left_out"]) == {(): 0}


async def test_commits_are_a_histogram(bed: Bed) -> None:
    await fill(bed)
    commits = bed.store.commits
    family = (await scraped(bed))["holdfast_store_commit_seconds"]
    name = family.name
    buckets = values(family, f"{name}_bucket")
    assert [float(le) for (le,) in buckets] == [*BOUNDS_S, float("inf")]
    assert list(buckets.values()) == commits.cumulative
    assert values(family, f"{name}_count") == {(): commits.count}
    assert values(family, f"{name}_sum") == {(): pytest.approx(commits.sum_s)}
    assert commits.count > 0


async def test_what_was_written_is_counted_from_the_start_and_unknown_is_left_out(
    bed: Bed,
) -> None:
    bed.kernel.writes(device_bytes=1 << 20, process_bytes=4096)
    written = values((await scraped(bed))["holdfast_store_written_bytes"])
    assert written == {("process",): 4096, ("device",): 1 << 20}
    (bed.kernel.disk / "stat").unlink()
    assert ("device",) not in values((await scraped(bed))["holdfast_store_written_bytes"])


async def test_the_link_is_shown_as_its_state_has_it(bed: Bed) -> None:
    found = await scraped(bed)
    expected = {
        "connected": 1,
        "paused": 0,
        "backlog_records": 8,
        "backlog_bytes": 9000,
        "quota_bytes": 1 << 20,
        "quota_used_bytes": 4321,
    }
    shown = {name: values(found[f"holdfast_link_{name}"])[()] for name in expected}
    assert shown == expected
    for name, total in (("sent_bytes", 12_345), ("acknowledged_records", 67)):
        name = f"holdfast_link_{name}"
        assert values(found[name], f"{name}_total") == {(): total}


async def test_jobs_are_shown_as_the_store_has_them(bed: Bed) -> None:
    jobs = bed.store.jobs
    names = [f"job-{i}" for i in range(4)]
    for name in names:
        await jobs.submit(arrivals.New("m", "batch", [], name), [Part(2, bytes(8))])
    await jobs.begin(names[0])
    await jobs.begin(names[0], "its process ended")
    await jobs.cancel(names[1])
    await jobs.fail(names[2], "it is wrong")
    await jobs.remove(names[2])
    found, counts = await scraped(bed), await jobs.counts()
    assert values(found["holdfast_jobs"]) == {(state,): n for state, n in counts.now.items()}
    assert values(found["holdfast_jobs"])[("queued",)] == 1
    assert values(found["holdfast_jobs_bytes"]) == {(): counts.bytes}
    assert values(found["holdfast_jobs_attempts"]) == {(): 2}
    assert values(found["holdfast_jobs_oldest_age_seconds"])[()] > 0
    total = {name: values(found[name], f"{name}_total") for name in found if "_jobs_" in name}
    assert total["holdfast_jobs_submitted"] == {(): 4}
    assert total["holdfast_jobs_ended"] == {("cancelled",): 1, ("done",): 0, ("failed",): 1}
    assert total["holdfast_jobs_removed"] == {("expired",): 0, ("taken",): 1}


async def test_openmetrics_is_what_a_scraper_gets_that_asks_for_it(bed: Bed) -> None:
    await fill(bed)
    bed.conditions.hold("link_down", "link", "warning", "a", 'b"')
    plain, kind = await bed.metrics.text("text/html, */*")
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    asked = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    text, kind = await bed.metrics.text(asked)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    families = {one.name: one for one in openmetrics(text.decode())}
    assert families.keys() == {one.name for one in text_string_to_metric_families(plain.decode())}
    assert text.endswith(b"# EOF\n")


async def test_what_is_not_known_of_the_link_has_no_value(bed: Bed) -> None:
    bed.link.update(backlog=None, quota=None)
    found = {name for name in await scraped(bed) if name.startswith("holdfast_link")}
    assert found == {
        f"holdfast_link_{name}"
        for name in ("connected", "paused", "sent_bytes", "acknowledged_records")
    }


async def test_conditions_are_there_while_they_hold(bed: Bed) -> None:
    bed.conditions.hold("source_unreadable", 'a"\\', "warning", "a", "b")
    family = (await scraped(bed))["holdfast_condition"]
    assert [(s.labels, s.value) for s in family.samples] == [
        ({"name": "source_unreadable", "subject": 'a"\\', "severity": "warning"}, 1)
    ]
    bed.conditions.clear("source_unreadable", 'a"\\')
    assert (await scraped(bed))["holdfast_condition"].samples == []


async def test_streams_beyond_the_bound_are_counted_not_shown(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "STREAMS_MAX", 2)
    await fill(bed)
    found = await scraped(bed)
    assert len(found["holdfast_ledger_held_records"].samples) == 2
    assert len(found["holdfast_outbox_bytes"].samples) == 2
    assert values(found["holdfast_ledger_streams_left_out"]) == {(): 1}
    assert values(found["holdfast_store_payload_bytes"]) == {(): 100}, "of all"


async def test_a_stream_that_rests_has_no_line(bed: Bed) -> None:
    await fill(bed)
    await bed.store.spool.refuse("gone", "full")
    assert await bed.store.takes.rest(["gone"]) == "gone"
    found = await scraped(bed)
    shown = values(found["holdfast_outbox_bytes"])
    assert shown.keys() == values(found["holdfast_ledger_held_records"]).keys()
    assert ("gone.raw",) not in shown


async def test_the_loop_goes_on_while_the_store_is_busy(bed: Bed) -> None:
    entered, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(_: sqlite3.Connection) -> bool:
        loop.call_soon_threadsafe(entered.set)
        return release.wait(60)

    busy = asyncio.create_task(bed.store._database.read(hold))
    try:
        await entered.wait()
        asked = asyncio.create_task(bed.metrics.text())
        for _ in range(100):
            await asyncio.sleep(0)
        assert not asked.done(), "it waits for the store, and the loop has turned"
    finally:
        release.set()
    assert await busy
    assert b"holdfast_store_used_bytes" in (await asked)[0]


async def test_a_store_that_is_gone_does_not_hide_the_rest(bed: Bed) -> None:
    bed.conditions.hold("store_unreadable", "store", "critical", "a", "b")
    await bed.store._database.__aexit__()
    found = await scraped(bed)
    assert values(found["holdfast_condition"]) == {("store_unreadable", "critical", "store"): 1}
    assert "holdfast_store_used_bytes" not in found
    assert "holdfast_store_commit_seconds" in found
