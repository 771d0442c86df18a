"""A token, typed once: a session, and the token is nowhere any more."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from agent.cli.client import Client
from tests.outside import Device, Mosquitto, free_port, running
from tests.page.window import Site, Window, look, window

SESSION = "/api/v1/session"
NOBODY = {"name": "nobody", "scopes": []}
TOKEN = "hf_the-secret-of-a-test"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An agent that lets nobody in without a token."""
    folder, port = tmp_path_factory.mktemp("locked"), free_port()
    api = {"port": port, "socket": str(folder / "holdfast.sock"), "loopback_scopes": []}
    device = Device(folder, {"api": api})
    with running(device):
        yield Site(device, Mosquitto(folder), f"http://127.0.0.1:{port}/")


def test_a_stranger_is_asked_for_a_token_and_sees_nothing(browser: Browser, locked: Site) -> None:
    with window(browser, locked, 360) as seen:
        page = seen.page
        page.goto(locked.url)
        expect(page.locator("#login")).to_be_visible()
        expect(page.locator("#login-why")).to_contain_text("those who have a token")
        expect(page.locator("#token")).to_be_focused()
        expect(page.locator("#all")).to_be_hidden()
        expect(page.locator("#verdict")).to_be_hidden()
        expect(page.locator("#logout")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert not seen.complaints()


def test_the_token_is_sent_once_and_kept_nowhere(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        page = seen.page
        seen.instead(SESSION, NOBODY)
        refusal = {"error": "this token is not known", "hint": "make another"}
        seen.instead(SESSION, refusal, 401, "POST")
        page.goto(site.url)
        _type(page)
        expect(page.locator("#login-why")).to_contain_text("not known — make another")
        begun = {"name": "phone", "scopes": ["read"], "expires_s": 3600.0}
        seen.instead(SESSION, begun, method="POST")
        seen.instead(SESSION, {"name": "phone", "scopes": ["read"]})
        _type(page)
        expect(page.locator("#all")).to_be_visible()
        expect(page.locator("#login")).to_be_hidden()
        expect(page.locator("#logout")).to_be_visible()
        expect(page.locator("#may-not")).to_have_text("To try a model takes the scope infer.")
        _nowhere(seen, TOKEN)


def test_a_session_that_ends_is_said(browser: Browser, site: Site) -> None:
    with window(browser, site) as seen:
        page = seen.opened()
        seen.instead(SESSION, NOBODY)
        look(page, "hidden")
        look(page, "visible")
        expect(page.locator("#login-why")).to_contain_text("The session has ended")
        expect(page.locator("#all")).to_be_hidden()


def test_login_and_logout(browser: Browser, locked: Site) -> None:
    locked.needs("POST", SESSION)
    client = Client(locked.device.socket)
    token = client.post("/api/v1/tokens", {"name": "phone", "scopes": ["read"]})["token"]
    with window(browser, locked) as seen:
        page = seen.page
        page.goto(locked.url)
        _type(page, token)
        expect(page.locator("#device")).to_have_text("device-under-test")
        _nowhere(seen, token)
        cookie = next(one for one in seen.context.cookies() if one["name"] == "holdfast_session")
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        assert token not in cookie["value"]
        page.reload()
        expect(page.locator("#device")).to_have_text("device-under-test")
        page.locator("#logout").click()
        expect(page.locator("#login")).to_be_visible()
        expect(page.locator("#device")).to_have_text("Holdfast")
        assert not [one for one in seen.context.cookies() if one["name"] == "holdfast_session"]
        assert not seen.complaints(), "what ended with the session was ended before it"


def test_a_revoked_token_ends_what_is_seen(browser: Browser, locked: Site) -> None:
    locked.needs("POST", SESSION)
    client = Client(locked.device.socket)
    made = client.post("/api/v1/tokens", {"name": "lost phone", "scopes": ["read"]})
    with window(browser, locked) as seen:
        page = seen.page
        page.goto(locked.url)
        _type(page, made["token"])
        expect(page.locator("#all")).to_be_visible()
        client.delete(f"/api/v1/tokens/{made['id']}")
        expect(page.locator("#login-why")).to_contain_text("The session has ended")
        expect(page.locator("#all")).to_be_hidden()


def _type(page: Page, token: str = TOKEN) -> None:
    page.locator("#token").fill(token)
    page.locator("#enter").click()
    expect(page.locator("#token")).to_have_value("")


def _nowhere(seen: Window, token: str) -> None:
    """Neither in the page, nor in what the browser keeps, nor in an address or a header."""
    kept = seen.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    texts = [seen.page.content(), seen.page.url, kept, seen.page.evaluate("document.cookie")]
    texts += [seen.page.locator("#token").input_value(), *(one.url for one in seen.asked)]
    assert not [text for text in texts if token in text]
    sent = [one for one in seen.asked if token in (one.post_data or "")]
    assert {(one.method, one.url.removeprefix(seen.site.url)) for one in sent} == {
        ("POST", SESSION[1:])
    }
