"""The log by its doors: the last lines, those to come, and their bounds."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import logs
from agent.api.form.events import Listeners
from agent.api.routes.logs import LogDoors
from agent.logs import KEPT_BYTES_MAX, KEPT_CHARS_MAX, KEPT_LINES_MAX, LINE_BYTES, Recent
from tests.api.listening import Listener
from tests.api.served import Served

BASE = "http://localhost/api/v1/logs"
log = logging.getLogger("tested")


@contextmanager
def written_to(recent: Recent) -> Iterator[None]:
    log.setLevel(logging.DEBUG)
    log.addHandler(recent)
    try:
        yield
    finally:
        log.removeHandler(recent)
        log.setLevel(logging.NOTSET)


@pytest.fixture
def recent() -> Iterator[Recent]:
    found = Recent()
    with written_to(found):
        yield found


@pytest.fixture
async def site(tmp_path: Path, recent: Recent) -> AsyncIterator[Served]:
    listeners = Listeners()
    doors = LogDoors(recent, listeners).routes()
    async with Served(tmp_path, BASE, doors, listeners=listeners) as found:
        yield found


async def test_the_last_lines(site: Served) -> None:
    for number in range(5):
        log.info("line %d", number)
    log.warning("beware")
    _, told = await site.ask("GET", "?count=2")
    assert [one["text"] for one in told["lines"]] == ["line 4", "beware"]
    assert (told["last"], told["missed"]) == (6, 0)
    last = told["lines"][-1]
    assert (last["number"], last["level"], last["source"]) == (6, "warning", "tested")
    assert last.keys() == {"number", "at_us", "level", "source", "text"}
    _, told = await site.ask("GET", "?level=warning")
    assert [one["text"] for one in told["lines"]] == ["beware"]
    _, told = await site.ask("GET", "?after=4")
    assert [one["number"] for one in told["lines"]] == [5, 6]
    _, told = await site.ask("GET", "?after=99")
    assert len(told["lines"]) == 6, "that number is of another run"


@pytest.mark.parametrize("query", ["count=0", "count=1001", "level=loud", "after=-1", "x=1"])
async def test_a_wrong_query(site: Served, query: str) -> None:
    status, told = await site.ask("GET", f"?{query}")
    assert (status, bool(told["hint"])) == (400, True)


async def test_follow(site: Served) -> None:
    log.info("before")
    async with site.client.get(f"{BASE}/events?level=info") as answer:
        listener = Listener(answer, site.checker)
        await asyncio.to_thread(log.info, "from a thread")
        log.debug("too fine")
        log.error("two\nlines \x1b[31m")
        found = [await listener.next() for _ in range(2)]
    assert [(one.name, one.content["text"]) for one in found] == [
        ("line", "from a thread"),
        ("line", "two | lines \\x1b[31m"),
    ]
    assert found[1].id == str(found[1].content["number"]) == "4"
    again = {"Last-Event-ID": found[0].id}
    async with site.client.get(f"{BASE}/events?after=0", headers=again) as answer:
        assert (await Listener(answer, site.checker).next()).content["text"] == "too fine"


async def test_what_came_too_fast_is_said(site: Served) -> None:
    for number in range(KEPT_LINES_MAX + 10):
        log.info("%d", number)
    async with site.client.get(f"{BASE}/events?after=3") as answer:
        listener = Listener(answer, site.checker)
        assert await listener.next() == ("missed", {"lines": 7}, "")
        assert (await listener.next()).content["text"] == "10"


def test_what_is_kept_is_bounded_in_lines_and_bytes(recent: Recent) -> None:
    for _ in range(KEPT_LINES_MAX + 5):
        log.info("short")
    assert len(recent.lines(0, "debug").lines) == KEPT_LINES_MAX
    for _ in range(KEPT_LINES_MAX):
        log.info("é" * (2 * KEPT_CHARS_MAX))
    found = recent.lines(0, "debug")
    assert all(len(one.text) <= KEPT_CHARS_MAX for one in found.lines)
    assert sum(len(one.text.encode()) + LINE_BYTES for one in found.lines) <= KEPT_BYTES_MAX
    assert recent._kept_bytes <= KEPT_BYTES_MAX
    assert found.last == found.lines[-1].number == 2 * KEPT_LINES_MAX + 5


def test_a_traceback_is_one_line(recent: Recent) -> None:
    try:
        raise ZeroDivisionError("here")
    except ZeroDivisionError:
        log.exception("it failed")
    (line,) = recent.lines(0, "debug").lines
    assert line.text.startswith("it failed | Traceback")
    assert line.text.endswith("ZeroDivisionError: here")


def test_the_agent_keeps_what_it_writes() -> None:
    root = logging.getLogger()
    before, level, asyncio_level = root.handlers[:], root.level, logging.getLogger("asyncio").level
    try:
        logs.begin("info")
        last = logs.RECENT.last
        log.info("kept")
        log.debug("not said, and not kept")
        assert [one.text for one in logs.RECENT.lines(last, "debug").lines] == ["kept"]
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.getLogger("asyncio").setLevel(asyncio_level)
