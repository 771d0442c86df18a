"""What was ordered, and what the cloud wants, as a person sees it."""

from typing import Any

from playwright.sync_api import Browser, expect

from agent.cli.client import Client
from tests.page.window import Site, window

COMMANDS = "/api/v1/commands"


def test_orders_are_shown_as_they_ended(browser: Browser, site: Site) -> None:
    client = Client(site.device.socket)
    done = client.post(f"{COMMANDS}?wait_s=20", {"name": "diagnose.list"})
    assert done["state"] == "succeeded"
    client.post(f"{COMMANDS}?wait_s=20", {"name": "diagnose", "args": {"check": "<b>no</b>"}})
    with window(browser, site) as seen:
        page = seen.opened()
        expect(page.locator("#orders-brief")).to_have_text("None under way")
        rows = page.locator("#order-rows li")
        expect(rows.filter(has_text="diagnose.list").first).to_contain_text("succeeded")
        expect(rows.filter(has_text="<b>no</b>").first).to_contain_text("failed")
        assert not seen.complaints()


def test_how_the_device_stands_to_what_is_wanted_is_shown(browser: Browser, site: Site) -> None:
    wanted: dict[str, Any] = {
        "log_level": {"actual": "info", "standing": "converged"},
        "models": {"actual": {}, "standing": "failed", "cause": "no room"},
        "sync_paused": {"actual": False},
    }
    with window(browser, site) as seen:
        twin = Client(site.device.socket).get("/api/v1/twin")
        seen.instead("/api/v1/twin", {**twin, "desired_version": 7, "state": wanted})
        page = seen.opened()
        expect(page.locator("#twin dd")).to_have_count(2)
        expect(page.locator("#twin .warn")).to_have_text("could not be done: no room")
        page.locator("#language").click()
        expect(page.locator("#twin dd").first).to_have_text("符合云端要求")
