"""The files of the page: what goes with them, and that nothing else is ever read."""

import http.client
from http.client import HTTPMessage
from importlib.resources import files
from urllib.parse import urlsplit

import pytest

from agent.api.routes.page import FILES, POLICY
from tests.page.window import Site

PAGE_BYTES_MAX = 36_000  # as it is sent: eight seconds of GPRS, once


def test_each_file_is_served_and_no_other_is_there() -> None:
    there = {one.name for one in files("agent.api.page").iterdir()}
    assert set(FILES.values()) == {name for name in there if not name.startswith("__")}


@pytest.mark.parametrize("path", FILES)
def test_a_file_says_what_it_is_and_what_it_may(site: Site, path: str) -> None:
    status, headers, body = _ask(site, path)
    assert status == 200
    assert headers["Content-Security-Policy"] == POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-cache"
    assert headers["Content-Type"].startswith("text/")
    again, known, nothing = _ask(site, path, {"If-None-Match": headers["ETag"]})
    assert (again, nothing) == (304, b"")
    assert known["ETag"] == headers["ETag"]
    other, _, fresh = _ask(site, path, {"If-None-Match": '"of another version"'})
    assert (other, fresh) == (200, body)


@pytest.mark.parametrize(
    "path",
    [
        *("/page", "/page/", "/page/none.js", "/page/__init__.py", "/style.css"),
        *("/page/../../app.py", "/page/%2e%2e/%2e%2e/app.py", "/page//etc/passwd"),
    ],
)
def test_what_is_not_in_the_list_is_not_there(site: Site, path: str) -> None:
    assert _ask(site, path)[0] == 404


def test_the_whole_page_is_small(site: Site) -> None:
    sent = [_ask(site, path, {"Accept-Encoding": "gzip"}) for path in FILES]
    assert {headers["Content-Encoding"] for _, headers, _ in sent} == {"gzip"}
    assert sum(len(body) for *_, body in sent) < PAGE_BYTES_MAX
    plain = [_ask(site, path) for path in FILES]
    assert not {headers.get("Content-Encoding") for _, headers, _ in plain} - {None}


def _ask(
    site: Site, path: str, headers: dict[str, str] | None = None
) -> tuple[int, HTTPMessage, bytes]:
    place = urlsplit(site.url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    try:
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()
