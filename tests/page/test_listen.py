"""Recent segments, to listen to."""

import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect

from tests.outside import ROOT, until
from tests.page.window import Site, window

SOUND = ROOT / "samples/fan.flac"
SEGMENTS = "/api/v1/audio/segments"


def test_segments_are_listed_and_one_is_played_at_a_time(browser: Browser, site: Site) -> None:
    with window(browser, site, 360) as seen:
        seen.instead(SEGMENTS, {"segments": [_segment(2), _segment(1)]})
        seen.page.route(f"**{SEGMENTS}/**/1", lambda route: route.fulfill(status=404, json={}))
        seen.page.route(f"**{SEGMENTS}/**/2", lambda route: route.fulfill(path=SOUND))
        page = seen.opened()
        page.locator("#listen > summary").click()
        rows = page.locator("#segments > li")
        expect(rows).to_have_count(2)
        newest, other = rows.first, rows.last
        expect(newest).to_contain_text("inbox, 2.5 s")
        newest.locator("button").click()
        expect(newest.locator("button")).to_contain_text("Stop")
        other.locator("button").click()
        expect(other).to_contain_text("could not be played")
        expect(other.locator("button")).to_contain_text("Listen")
        expect(newest.locator("button")).to_contain_text("Listen")
        asked = {one.url for one in seen.asked if f"{SEGMENTS}/" in one.url}
        assert asked == {f"{site.url}api/v1/audio/segments/inbox.segments/{n}" for n in (1, 2)}


def test_what_is_not_there_is_not_spoken_of(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        seen.instead(SEGMENTS, {"error": "Not Found"}, 404)
        page = seen.opened()
        expect(page.locator("#domains")).to_contain_text("last")  # it has looked around
        expect(page.locator("#listen")).to_be_hidden()


def test_a_real_segment_is_heard(browser: Browser, site: Site) -> None:
    site.needs("GET", SEGMENTS)
    site.broker.kill()  # what is delivered is purged
    try:
        fresh = shutil.copy(ROOT / "samples/workshop.flac", site.device.folder)
        Path(fresh).rename(site.device.folder / "sounds/workshop.flac")
        until(lambda: _held(site), "a segment is held")
        with window(browser, site) as seen:
            page = seen.opened()
            row = page.locator("#segments > li").first
            row.locator("button").click()
            expect(row.locator("button")).to_contain_text("Stop")
            row.locator("button").click()
            expect(row.locator("button")).to_contain_text("Listen")
            assert not seen.complaints()
    finally:
        site.broker.start()


def _held(site: Site) -> int:
    held: int = site.device.ledger("inbox.segments")["held"]
    return held


def _segment(seq: int) -> dict[str, Any]:
    return {
        **{"id": f"s{seq}", "seq": seq, "stream": "inbox.segments", "source": "inbox"},
        **{"name": "fan.flac", "start_s": 1.0, "length_s": 2.5, "speech": 0.9},
        **{"heard_us": 1_700_000_000_000_000 + seq, "model": "speech/1", "ep": "CPU"},
    }
