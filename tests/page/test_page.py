"""The page as a person sees it: the state, live, in two languages, on a phone."""

import http.client
import os
import signal
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from agent.api.form.events import BOUNDS
from tests.outside import until
from tests.page.window import Site, look, window

TARGETS = "button, select, input, textarea, summary"
TOUCH_PX_MIN = 44
PHONE_PX_MAX = 1480  # two screens of 740
UNFOLD = "for (const one of document.querySelectorAll('details')) one.open = true"
HEADINGS = """[...document.querySelectorAll("h2")].filter((one) => one.checkVisibility())
  .map((one) => one.dataset.word)"""
WORDS = {"healthy": "Healthy", "degraded": "Degraded", "unhealthy": "Unhealthy"}


def test_the_state_is_shown_and_the_browser_has_nothing_to_say(
    browser: Browser, site: Site
) -> None:
    until(lambda: "inbox.segments" in site.device.status()["ledger"], "something was heard")
    with window(browser, site) as seen:
        page = seen.opened()
        state = site.device.status()
        expect(page.locator("#word")).to_have_text(WORDS[state["status"]])
        expect(page.locator("#device")).to_have_text("device-under-test")
        expect(page.locator("#about")).to_contain_text(state["version"])
        expect(page.locator("#link")).to_contain_text("Connected for")
        expect(page.locator("#ledger-rows tr")).to_have_count(2)
        expect(page.locator("#balances")).to_have_text("✓ Balances")
        expect(page.locator("#domains > li")).to_have_count(2)
        expect(page.locator("#domains > li", has_text="vision")).to_contain_text("version 2")
        expect(page.locator("#domains > li", has_text="audio")).to_contain_text("last")
        expect(page.locator("#store")).to_contain_text("of 2 GiB used")
        assert page.title() == f"{WORDS[state['status']]} · device-under-test · Holdfast"
        assert not seen.complaints()
        assert not seen.strangers()


def test_a_link_that_breaks_is_seen_at_once_with_what_to_do(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        page = seen.opened()
        expect(page.locator("#link")).to_contain_text("Connected for")
        site.broker.kill()
        try:
            down = page.locator("#needs > li", has_text="link_down")
            expect(down).to_contain_text("What to do")
            expect(page.locator("#link")).to_contain_text("No connection")
            expect(page.locator("#word")).not_to_have_text("Healthy")
        finally:
            site.broker.start()
        expect(page.locator("#link")).to_contain_text("Connected for")
        expect(down).to_have_count(0)


def test_an_agent_that_hangs_is_not_shown_as_live(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        page = seen.opened()
        os.kill(site.device.pid, signal.SIGSTOP)
        try:
            expect(page.locator("#word")).to_have_text("Not live")
            expect(page.locator("#old")).to_contain_text("old")
            assert "stale" in (page.locator("#all").get_attribute("class") or "")
        finally:
            os.kill(site.device.pid, signal.SIGCONT)
        expect(page.locator("#word")).not_to_have_text("Not live")
        expect(page.locator("#old")).to_be_hidden()


def test_an_agent_that_died_is_said_and_its_return_seen(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        page = seen.opened()
        site.device.kill()
        try:
            expect(page.locator("#word")).to_have_text("Not live")
            expect(page.locator("#old")).to_contain_text("s old")
            assert page.title().startswith("Not live")
            assert "stale" in (page.locator("#all").get_attribute("class") or "")
        finally:
            site.device.start()
        page.locator("#again").evaluate("(button) => button.click()")  # it may have come already
        expect(page.locator("#word")).not_to_have_text("Not live")
        assert "stale" not in (page.locator("#all").get_attribute("class") or "")


def test_an_agent_that_cannot_tell_its_state_says_why(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        trouble = {"error": "the store is locked", "hint": "wait"}
        seen.told(site.device.status(), "trouble", trouble)
        page = seen.opened()
        expect(page.locator("#word")).to_have_text("Not live")
        expect(page.locator("#sentence")).to_contain_text("the store is locked — wait")


def test_who_follows_too_much_already_is_told_what_to_do(browser: Browser, site: Site) -> None:
    place = urlsplit(site.url)
    with window(browser, site) as seen, ExitStack() as held:
        for _ in range(BOUNDS.caller_max):
            connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
            held.callback(connection.close)
            connection.request("GET", "/api/v1/events")
            assert held.enter_context(connection.getresponse()).status == 200
        page = seen.page
        page.goto(site.url)
        expect(page.locator("#word")).to_have_text("Not live")
        expect(page.locator("#sentence")).to_contain_text("loopback has 6 streams of events open")
        expect(page.locator("#sentence")).to_contain_text("close one")
        held.close()
        page.locator("#again").evaluate("(button) => button.click()")  # it may have come already
        expect(page.locator("#all")).to_be_visible()


def test_nothing_is_asked_while_nobody_looks(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        page = seen.opened()
        look(page, "hidden")
        assert page.evaluate("window.streams.map((one) => one.readyState)") == [2]  # closed
        look(page, "visible")
        expect(page.locator("#word")).not_to_have_text("Not live")
        assert page.evaluate("window.streams.map((one) => one.readyState)") == [2, 1]


def test_updates_leave_alone_what_somebody_is_at(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        page = seen.opened()
        page.locator("#trial summary").click()
        page.locator("#inputs").fill("my own words")
        page.evaluate("for (const li of document.querySelectorAll('#domains > li')) li.old = true")
        before = page.locator("#about").inner_text()
        expect(page.locator("#about")).not_to_have_text(before)  # some updates later
        assert page.evaluate(
            "[...document.querySelectorAll('#domains > li')].every((li) => li.old)"
        )
        assert page.evaluate("document.activeElement.id") == "inputs"
        assert page.locator("#inputs").input_value() == "my own words"


def test_only_models_that_take_tensors_are_there_to_try(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        page = seen.opened()
        page.locator("#trial summary").click()
        assert page.locator("#model option").all_inner_texts() == ["m"], "speech takes none"


def test_a_model_answers(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        page = seen.opened()
        page.locator("#trial summary").click()
        page.locator("#model").select_option("m")
        _ask(page, _inputs("x", 4, [1, 2, 3, 4]))
        expect(page.locator("#outputs")).to_contain_text("[2,4,6,8]")
        expect(page.locator("#answer-facts")).to_contain_text("CPU")
        expect(page.locator("#answer-facts")).to_contain_text("ms")
        _ask(page, _inputs("x", 5, [1, 2, 3, 4, 5]))
        expect(page.locator("#told")).to_contain_text("expected [-1, 4]")
        expect(page.locator("#told")).to_contain_text("holdfast models verify m")
        _ask(page, "{")
        expect(page.locator("#told")).to_contain_text("That is no JSON")
        expect(page.locator("#answer")).to_be_hidden()


def test_what_a_model_takes_is_filled_in(browser: Browser, site: Site) -> None:
    site.needs("GET", "/v2/models/{model}")
    with window(browser, site) as seen:
        page = seen.opened()
        page.locator("#trial summary").click()
        page.locator("#model").select_option("m")
        expect(page.locator("#inputs")).to_have_value(_inputs("x", 4, [0, 0, 0, 0]))
        page.locator("#ask").click()
        expect(page.locator("#outputs")).to_contain_text("[0,0,0,0]")
        assert not seen.complaints()


def test_what_somebody_typed_before_that_stays(browser: Browser, site: Site) -> None:
    def asked(url: str) -> bool:
        return urlsplit(url).path == "/v2/models/m"

    with window(browser, site) as seen:
        page, late = seen.opened(), list[Route]()
        page.route(asked, lambda one: late.append(one))
        with page.expect_request(lambda one: asked(one.url)):
            page.locator("#trial summary").click()
        page.locator("#inputs").fill("my own words")
        with page.expect_event("requestfinished", lambda one: asked(one.url)):
            late[0].continue_()
        page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        assert page.locator("#inputs").input_value() == "my own words"


def test_two_languages_and_the_choice_is_kept(browser: Browser, site: Site) -> None:
    with window(browser, site, locale="zh-CN") as seen:
        page = seen.opened()
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        expect(page.locator("#h-ledger")).to_have_text("账目")
        page.locator("#language").click()
        expect(page.locator("html")).to_have_attribute("lang", "en")
        expect(page.locator("#link")).to_contain_text("Connected for")
        page.reload()
        expect(page.locator("#h-ledger")).to_have_text("Ledger")


def test_each_word_is_there_in_both_languages(browser: Browser, site: Site) -> None:
    compare = """async () => {
      const { WORDS } = await import("/page/words.js");
      const places = (text) => (text.match(/{\\w+}/g) ?? []).sort().join();
      const keys = new Set([...Object.keys(WORDS.en), ...Object.keys(WORDS.zh)]);
      const used = [...document.querySelectorAll("[data-word]")].map((one) => one.dataset.word);
      return [...keys, ...used].filter((key) => !(WORDS.en[key] && WORDS.zh[key]) ||
        (!key.endsWith("_one") && places(WORDS.en[key]) !== places(WORDS.zh[key])));
    }"""
    with window(browser, site) as seen:
        assert seen.opened().evaluate(compare) == []


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_it_fits_and_can_be_touched(browser: Browser, site: Site, locale: str) -> None:
    with window(browser, site, locale=locale) as seen:
        page = seen.opened()
        page.evaluate(UNFOLD)
        for width in (1280, 360, 320):
            page.set_viewport_size({"width": width, "height": 640})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            boxes = [one.bounding_box() for one in page.locator(TARGETS).all() if one.is_visible()]
            assert len(boxes) > 5
            assert all(box and min(box["width"], box["height"]) >= TOUCH_PX_MIN for box in boxes)


def test_a_phone_shows_what_matters_first_and_folds_the_rest(browser: Browser, site: Site) -> None:
    order = ["link", "backlog", "domains", "segments", "trial", "ledger", "watchdog"]
    order += ["orders", "store", "sources"]
    with window(browser, site, 360) as seen:
        page = seen.opened()
        for asked in ("#listen", "#trial", "#watchdog", "#orders"):  # each is there once answered
            expect(page.locator(asked)).to_be_visible()
        assert page.evaluate(HEADINGS) == order
        assert page.evaluate("document.documentElement.scrollHeight") < PHONE_PX_MAX
        expect(page.locator("#balances")).to_be_visible()
        expect(page.locator("#domains-brief")).to_have_text("2/2 ready")
        expect(page.locator("#ledger")).to_be_hidden()
        page.locator("summary", has_text="Ledger").click()
        expect(page.locator("#ledger-rows tr").first).to_be_visible()
    with window(browser, site, 1280) as seen:
        page = seen.opened()
        expect(page.locator("#ledger")).to_be_visible()
        expect(page.locator("#domains > li").first).to_be_visible()


def _ask(page: Page, inputs: str) -> None:
    page.locator("#inputs").fill(inputs)
    page.locator("#ask").click()


def _inputs(name: str, width: int, values: list[int]) -> str:
    data = ",".join(map(str, values))
    tensor = f'{{"name":"{name}","shape":[1,{width}],"datatype":"FP32","data":[{data}]}}'
    return f'{{"inputs": [\n  {tensor}\n]}}'
