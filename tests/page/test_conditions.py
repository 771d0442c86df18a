"""What is wrong, in the words of both languages."""

import re
from typing import Any, get_args

import pytest
from playwright.sync_api import Browser, expect

from agent.health.names import Name
from tests.outside import ROOT
from tests.page.window import Site, window

NAMES = set(get_args(Name))
WORDS = """async () => (await import("/page/conditions.js")).NAMES"""
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def condition(name: str, **more: Any) -> dict[str, Any]:
    said = {"cause": "[Errno 113] No route", "remedy": "check the cable", "severity": "warning"}
    return {"name": name, "subject": "link", "since_us": 0, "age_s": 75.0, **said, **more}


def test_each_condition_has_words_in_both_languages(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        words = seen.opened().evaluate(WORDS)
    assert set(words["en"]) == set(words["zh"]) == NAMES
    assert all(isinstance(title, str) and title for title in words["en"].values())
    for name, said in words["zh"].items():
        title, todo = said
        assert CHINESE.search(title), name
        assert CHINESE.search(todo), name


def test_each_condition_is_raised_and_stands_in_the_document() -> None:
    lines = (ROOT / "docs/health.md").read_text().splitlines()
    told = [re.match(r"\| `(\w+)` \| (critical|warning|note)", line) for line in lines]
    assert {one[1] for one in told if one} == NAMES
    files = (ROOT / "agent").rglob("*.py")
    code = "\n".join(file.read_text() for file in files if file.name != "names.py")
    assert {name for name in NAMES if f'"{name}"' not in code} == set()


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_condition_says_what_it_is_why_and_what_to_do(
    browser: Browser, site: Site, locale: str
) -> None:
    with window(browser, site, locale=locale) as seen:
        seen.told({**site.device.status(), "conditions": [condition("link_down")]})
        page = seen.opened()
        card = page.locator("#needs > li")
        expect(card).to_contain_text("· link_down")
        own = card.locator("dd[lang=en]").all_inner_texts()
        assert own == ["[Errno 113] No route", "check the cable"]
        if locale == "zh-CN":
            expect(card.locator("h3")).to_contain_text("与消息服务器断开")
            expect(card.locator("dd.todo")).to_contain_text("检查网线")
            assert card.locator("dd.todo").get_attribute("lang") is None
            expect(card.locator("dt").first).to_contain_text("设备原文")
        else:
            expect(card.locator("h3")).to_contain_text("No connection to the broker")
            expect(card.locator("dd.todo")).to_have_text("check the cable")


def test_one_that_this_page_does_not_know_is_shown_by_its_name(
    browser: Browser, site: Site
) -> None:
    with window(browser, site, locale="zh-CN") as seen:
        found = [condition("constructor"), condition("of_tomorrow")]
        seen.told({**site.device.status(), "conditions": found})
        cards = seen.opened().locator("#needs h3")
        expect(cards).to_have_text(["constructorlink", "of_tomorrowlink"])
        assert not seen.complaints()
