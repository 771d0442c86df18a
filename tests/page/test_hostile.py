"""Whatever a device, a file or a model is called: it is text."""

from typing import Any

from playwright.sync_api import Browser, expect

from tests.page.test_page import UNFOLD
from tests.page.window import Site, window

EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
HARMLESS = {
    "engine",
    "status",
    "severity",
    "kind",
    "why",
    "breaker",
}  # words that the agent chooses


def test_no_text_of_the_device_is_markup(browser: Browser, site: Site) -> None:
    row = {"produced": 1, "delivered": 0, "held": 0, "dropped": {"given up": 1}}
    more = {"conditions": [_condition()], "ledger": {"mic.raw": row}}
    state = _spoilt({**site.device.status(), **more})
    segment = {"id": EVIL, "stream": EVIL, "seq": 1, "source": EVIL, "name": EVIL, "heard_us": 1}
    told = {"inputs": [{"name": EVIL, "datatype": EVIL, "shape": [1]}], "outputs": []}
    with window(browser, site, 360) as seen:
        seen.told(state)
        seen.instead("/api/v1/audio/segments", {"segments": [{**segment, "length_s": 1.5}]})
        seen.page.route("**/v2/models/**", lambda route: route.fulfill(json=told))
        seen.page.route("**/trace", lambda route: route.fulfill(json={"calls": []}))
        page = seen.opened()
        expect(page.locator("#segments > li")).to_contain_text("<img")
        page.evaluate(UNFOLD)
        expect(page.locator("#inputs")).not_to_have_value("")
        for place in ("#device", "#needs", "#link", "#ledger-rows", "#domains", "#sources"):
            expect(page.locator(place)).to_contain_text("<script>")
        assert page.locator("img").count() == 0
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert not seen.complaints()


def test_what_a_model_says_of_an_input_is_text(browser: Browser, site: Site) -> None:
    """The agent's own error, which quotes what was asked."""
    with window(browser, site) as seen:
        page = seen.opened()
        page.locator("#trial summary").click()
        page.locator("#model").select_option("m")
        tensor = '{"name": "<img src=x>", "shape": [1, 4], "datatype": "FP32", "data": [1,2,3,4]}'
        page.locator("#inputs").fill(f'{{"inputs": [{tensor}]}}')
        page.locator("#ask").click()
        expect(page.locator("#told")).to_contain_text("<img src=x>")
        assert page.locator("img").count() == 0


def _condition() -> dict[str, Any]:
    names = {"name": EVIL, "subject": EVIL, "cause": EVIL, "remedy": EVIL}
    return {**names, "severity": "warning", "since_us": 0, "age_s": 1.0}


def _spoilt(content: Any, key: str = "") -> Any:
    """The same with every text, and every name of a part, made hostile."""
    if isinstance(content, dict):
        named = key in ("ledger", "domains", "models", "sources", "dropped")
        return {EVIL + k if named else k: _spoilt(value, k) for k, value in content.items()}
    if isinstance(content, list):
        return [_spoilt(one, key) for one in content]
    return EVIL + content if isinstance(content, str) and key not in HARMLESS else content
