"""A window on the page: what it showed, asked for and complained of."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Route

from agent.cli.client import Client
from tests.outside import Device, Mosquitto

DEADLINE_S = 90.0
# Run before the page's own scripts: notes what the policy forbade, and the streams that are open.
WATCH = """
window.forbidden = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.forbidden.push(`${event.violatedDirective} ${event.blockedURI}`);
});
window.streams = [];
const Real = window.EventSource;
window.EventSource = class extends Real {
  constructor(...all) { super(...all); window.streams.push(this); }
};
"""


# A stream that tells one state, again and again or once.
TOLD = """
window.EventSource = class extends EventTarget {
  constructor() {
    super();
    this.tell = () => this.dispatchEvent(new MessageEvent("status", {data: STATE}));
    this.timer = setInterval(this.tell, 500);
    setTimeout(this.tell);
    if (THEN) {
      clearInterval(this.timer);
      setTimeout(() => this.dispatchEvent(new MessageEvent(...THEN)), 100);
    }
  }
  close() { clearInterval(this.timer); }
};
"""
# Doors that the page asks for, and may be told are not there; by the path that is asked.
YOUNG = {"/api/v1/audio/segments": "/api/v1/audio/segments", "/v2/models/m": "/v2/models/{model}"}


class Site:
    """An agent, its broker, and where its page is."""

    def __init__(self, device: Device, broker: Mosquitto, url: str) -> None:
        self.device = device
        self.broker = broker
        self.url = url

    @functools.cached_property
    def doors(self) -> dict[str, Any]:
        """What is served, by path."""
        found: dict[str, Any] = Client(self.device.socket).get("/api/v1/openapi.json")["paths"]
        return found

    def needs(self, method: str, path: str) -> None:
        """Skip a test of what is not served yet."""
        if method.lower() not in self.doors.get(path, {}):
            pytest.skip(f"{method} {path} is not served yet")


class Window:
    """One page in a browser of its own."""

    def __init__(self, context: BrowserContext, site: Site) -> None:
        self.site = site
        self.context = context
        self.said: list[ConsoleMessage] = []
        self.asked: list[Request] = []
        self.thrown: list[str] = []
        context.add_init_script(WATCH)
        self.page = context.new_page()
        self.page.on("console", lambda one: self.said.append(one))
        self.page.on("request", lambda one: self.asked.append(one))
        self.page.on("pageerror", lambda error: self.thrown.append(str(error)))

    def opened(self) -> Page:
        """The page, with the first state shown."""
        self.page.goto(self.site.url)
        self.page.wait_for_selector("#all:not([hidden])", timeout=DEADLINE_S * 1000)
        return self.page

    def instead(self, path: str, answer: Any, status: int = 200, method: str = "GET") -> None:
        """Have the browser get this answer from a door, in place of the agent's."""

        def fulfil(route: Route) -> None:
            if route.request.method == method:
                route.fulfill(status=status, json=answer)
            else:
                route.fallback()

        self.page.route(lambda url: urlsplit(url).path == path, fulfil)

    def told(self, state: dict[str, Any], then: str | None = None, said: Any = None) -> None:
        """Have the page told this state, not the agent's: again and again, or once and `then`
        another event."""
        event = then and [then, {"data": json.dumps(said)}]
        words = {"STATE": json.dumps(json.dumps(state)), "THEN": json.dumps(event)}
        script = TOLD
        for name, value in words.items():
            script = script.replace(name, value)
        self.page.add_init_script(script)

    def complaints(self) -> list[str]:
        """Of the browser."""
        excused = {path for path, door in YOUNG.items() if door not in self.site.doors}
        said = [
            f"{one.type}: {one.text} {one.location}"
            for one in self.said
            if urlsplit(one.location["url"]).path not in excused
        ]
        forbidden: list[str] = self.page.evaluate("window.forbidden")
        return [*said, *self.thrown, *forbidden]

    def strangers(self) -> list[str]:
        """What was asked of anybody but this agent."""
        own = (self.site.url, "data:")
        return [one.url for one in self.asked if not one.url.startswith(own)]


@contextmanager
def window(browser: Browser, site: Site, width: int = 1280, **more: Any) -> Iterator[Window]:
    """A fresh browser context, so wide; `more` goes to playwright."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **more)
    context.set_default_timeout(DEADLINE_S * 1000)
    try:
        yield Window(context, site)
    finally:
        context.close()


def look(page: Page, state: str) -> None:
    """As if another tab were chosen, or this one again."""
    page.evaluate(
        """(state) => {
          Object.defineProperty(document, "visibilityState", {configurable: true, value: state});
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        state,
    )
