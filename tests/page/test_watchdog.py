"""What must move, and what was done where it did not, as a person sees it."""

import time
from typing import Any

from playwright.sync_api import Browser, expect

from agent.cli.client import Client
from tests.page.window import Site, window

PART: dict[str, Any] = {
    "part": "domain vision",
    "verdict": "dead",
    "still_s": 31.0,
    "done": 7,
    "why": "",
    "remedies": 1,
}
BEGAN = {
    "unknown": "why is not known",
    "crash": "after a crash",
    "ordered": "because it was told to",
}
EVENT = {
    "part": "domain vision",
    "remedy": "instance",
    "cause": "the watchdog saw no progress of domain vision for 24 s",
    "outcome": "1 processes killed, <b>their</b> calls are made again",
}


def test_what_must_move_is_shown(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        page = seen.opened()
        expect(page.locator("#watchdog-brief")).to_have_text("All moves")
        expect(page.locator("#parts")).to_contain_text("store")
        expect(page.locator("#parts")).to_contain_text("uplink")
        document = Client(site.device.socket).get("/api/v1/watchdog")
        expect(page.locator("#parts")).to_contain_text(BEGAN[document["start"]["cause"]])
        found = document["hardware"]["found"]
        said = found["identity"] if found else "there is none"
        expect(page.locator("#parts")).to_contain_text(said)
        assert not seen.complaints()


def test_an_accelerator_is_shown_where_there_is_one(browser: Browser, site: Site) -> None:
    reading = {"id": "gpu", "name": "Orin Nano", "present": True, "utilisation_ratio": 0.42}
    told = {"memory_used_bytes": 3 << 30, "memory_total_bytes": 8 << 30, "temperature_c": 61.5}
    lost = {**reading, "name": "T4", "present": False}
    boards = [{**reading, **told, "power_w": 12.34, "mode": "15W"}, lost]
    state = site.device.status()
    assert state["accelerators"]["backend"] == "none", "for this test, a machine without one"
    with window(browser, site) as seen:
        expect(seen.opened().locator("#accelerators")).to_be_hidden()
    state["accelerators"] = {**state["accelerators"], "backend": "jetson", "accelerators": boards}
    with window(browser, site) as seen:
        seen.told(state)
        rows = seen.opened().locator("#accelerators dd")
        expect(rows.nth(0)).to_have_text("42 % busy · 3 GiB of 8 GiB used · 62 °C · 12.3 W · 15W")
        expect(rows.nth(1)).to_have_text("Not there any more")


def test_a_part_that_stands_still_and_what_was_done_is_shown(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        fine = {**PART, "part": "store", "verdict": "fine", "why": "any"}
        watched = Client(site.device.socket).get("/api/v1/watchdog")
        seen.instead("/api/v1/watchdog", {**watched, "parts": [fine, PART]})
        noted = {"at_us": int(time.time() * 1e6), "boot": "b", "event": EVENT}
        seen.instead("/api/v1/watchdog/history", {"events": [noted]})
        page = seen.opened()
        expect(page.locator("#watchdog-brief")).to_have_text("1 part stands still")
        expect(page.locator("#parts .critical")).to_have_text("Stands still for 31 s")
        expect(page.locator("#remedies")).to_contain_text("<b>their</b> calls are made again")
        page.locator("#language").click()
        expect(page.locator("#watchdog-brief")).to_have_text("1 个部分停滞")
