"""What can be read: contrast in daylight and in the dark, in every state."""

from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.page.test_page import UNFOLD
from tests.page.window import Site, window

CONTRAST_MIN = 4.5  # WCAG 2.2 AA, of text of any size
# Each visible text against the first background behind it, as [ratio, text].
CONTRASTS = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).slice(0, 3).map((one) => one / 255)
      .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if ((parts(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort();
    found.push([(b + 0.05) / (a + 0.05), walker.currentNode.data.trim()]);
  }
  return found;
}"""


@pytest.mark.parametrize("state", ["healthy", "degraded", "unhealthy", "stale", "login"])
def test_every_text_has_contrast(browser: Browser, site: Site, state: str) -> None:
    with window(browser, site, 360, color_scheme="light") as seen:
        if state == "login":
            seen.instead("/api/v1/session", {"name": "nobody", "scopes": []})
            seen.page.goto(site.url)
            expect(seen.page.locator("#login")).to_be_visible()
        else:
            seen.told(_in(site.device.status(), state), "error" if state == "stale" else None)
            page = seen.opened()
            if state == "stale":
                expect(page.locator("#word")).to_have_text("Not live")
            page.evaluate(UNFOLD)
        least = 5 if state == "login" else 40
        light = seen.page.evaluate(CONTRASTS)
        seen.page.emulate_media(color_scheme="dark")
        dark = seen.page.evaluate(CONTRASTS)
        assert min(len(light), len(dark)) > least
        assert light != dark
        assert [one for one in light + dark if one[0] < CONTRAST_MIN] == []


def _in(document: dict[str, Any], state: str) -> dict[str, Any]:
    """The same device, worse."""
    word = "degraded" if state == "stale" else state
    if word == "healthy":
        return document
    severity = {"degraded": "warning", "unhealthy": "critical"}[word]
    wrong = {
        **{"name": "link_down", "subject": "link", "severity": severity, "cause": "no route"},
        **{"remedy": "plug it in", "since_us": 1_700_000_000_000_000, "age_s": 75.0},
    }
    broken = {"produced": 9, "delivered": 1, "held": 1, "dropped": {"expired": 2, "operator": 1}}
    domains = {
        name: {**one, "ready": False, "quarantined": True, "cause": "it died"}
        for name, one in document["domains"].items()
    }
    return {
        **document,
        **{"status": word, "conditions": [wrong], "ledger": {"mic.raw": broken}},
        **{"domains": domains, "link": {**document["link"], "paused": True}},
    }
