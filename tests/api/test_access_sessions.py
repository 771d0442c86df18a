"""Browser sessions: what the cookie is like, how it is used, and when it ends."""

from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from pathlib import Path

import pytest

from agent.api.entry import guard
from agent.api.entry.sessions import COOKIE, IDLE_S, LIFE_S, SESSIONS_MAX
from agent.api.routes.session import SESSION
from tests.api.entrance import Entrance, bearer, is_a_refusal

STATUS = "/api/v1/status"
NOBODY = {"name": "nobody", "scopes": []}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Entrance]:
    """This machine's programs may nothing without a token: who is let in has one."""
    async with Entrance(tmp_path, loopback=()) as found:
        yield found


@pytest.fixture
async def trusting(tmp_path: Path) -> AsyncIterator[Entrance]:
    """As it is shipped."""
    async with Entrance(tmp_path) as found:
        yield found


async def test_a_login_and_what_its_cookie_is_like(site: Entrance) -> None:
    text = await site.token("read", "admin", name="a person")
    ask = site.visitor.ask
    answer = await ask("POST", SESSION, {"Origin": site.visitor.origin}, {"token": f" {text}\n"})
    wanted = {"name": "a person", "scopes": ["read", "admin"]}
    assert (answer.status, answer.document) == (200, {**wanted, "expires_s": LIFE_S})
    cookie = SimpleCookie(answer.headers["Set-Cookie"])[COOKIE]
    kept = {key: value for key, value in cookie.items() if value}
    wanted_of_it = {"path": "/", "max-age": str(int(LIFE_S)), "httponly": True}
    assert kept == {**wanted_of_it, "samesite": "Strict"}, "Secure is for TLS"
    assert text not in str(answer.headers)
    assert answer.headers["Cache-Control"] == "no-store"
    held = {"Cookie": f"a=b; {COOKIE}={cookie.value}; c=d"}
    assert (await ask("GET", SESSION, held)).document == wanted
    assert (await ask("GET", STATUS, held)).status == 200
    assert (await ask("GET", "/api/v1/tokens", held)).status == 200


async def test_behind_a_proxy_with_tls_the_cookie_is_for_tls_alone(site: Entrance) -> None:
    body = {"token": await site.token()}
    origin = {"Origin": site.visitor.origin.replace("http:", "https:")}
    answer = await site.visitor.ask("POST", SESSION, origin, body)
    assert "; Secure" in answer.headers["Set-Cookie"]


async def test_whoever_asks_is_told_who_he_is(trusting: Entrance) -> None:
    ask = trusting.visitor.ask
    here = {"name": "loopback", "scopes": ["read", "infer"]}
    assert (await ask("GET", SESSION)).document == here
    assert (await ask("GET", SESSION, by="unix")).document["name"] == "unix socket"
    assert (await ask("GET", SESSION, {"Cookie": f"{COOKIE}=x"})).document == here
    for unknown in ({"Via": "x"}, {"Via": "x", "Cookie": f"{COOKIE}=x"}):
        answer = await ask("GET", SESSION, unknown)
        assert (answer.status, answer.document) == (200, NOBODY)
    assert is_a_refusal(await ask("GET", SESSION, bearer("hf_")), 401)
    text = await trusting.token(name="a person")
    assert (await ask("GET", SESSION, bearer(text))).document["name"] == "a person"


@pytest.mark.parametrize("body", [{"token": "hf_"}, {"token": ""}])
async def test_a_wrong_token_begins_nothing(site: Entrance, body: dict[str, str]) -> None:
    answer = await site.visitor.ask("POST", SESSION, body=body)
    assert is_a_refusal(answer, 401)
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "body", [{}, {"token": 1}, {"token": "x" * 1000}, b"x", b'{"token": "\\ud800"}', {"tokens": ""}]
)
async def test_what_is_no_login_is_refused(site: Entrance, body: object) -> None:
    assert is_a_refusal(await site.visitor.ask("POST", SESSION, body=body), 400)


async def test_a_token_in_a_url_is_refused_everywhere(site: Entrance) -> None:
    text = await site.token("read", "admin")
    for name in ("token", "access_token"):
        for door in (SESSION, STATUS, "/api/v1/tokens", "/api/v1/health"):
            answer = await site.visitor.ask("GET", f"{door}?{name}={text}", by="unix")
            assert is_a_refusal(answer, 400), door
            assert text not in str(answer.document)


async def test_logout_ends_it_and_takes_the_cookie(site: Entrance) -> None:
    held = await site.login(await site.token())
    other = await site.login(await site.token(name="another"))
    own = {**held, "Origin": site.visitor.origin}
    answer = await site.visitor.ask("DELETE", SESSION, own)
    assert (answer.status, answer.document) == (200, NOBODY)
    assert 'holdfast_session=""' in answer.headers["Set-Cookie"]
    assert "Max-Age=0" in answer.headers["Set-Cookie"]
    assert is_a_refusal(await site.visitor.ask("GET", STATUS, held), 401)
    assert (await site.visitor.ask("GET", STATUS, other)).status == 200
    assert (await site.visitor.ask("DELETE", SESSION, own)).status == 200, "again is no harm"


async def test_a_session_that_has_ended_takes_nothing_away(trusting: Entrance) -> None:
    """A browser on this machine sends its cookie unasked; without it, it would be let in."""
    text = await trusting.token("read")
    held = await trusting.login(text)
    ask = trusting.visitor.ask
    await trusting.tokens.revoke(text[3:11])
    for by in ("tcp", "unix"):
        answer = await ask("GET", STATUS, held, by=by)
        assert (answer.status, "Set-Cookie" in answer.headers) == (200, False)
    foreign = {**held, "Origin": "http://127.0.0.1:1"}
    assert is_a_refusal(await ask("GET", STATUS, foreign), 403)


async def test_where_it_is_needed_its_end_is_said_and_the_cookie_taken(trusting: Entrance) -> None:
    text = await trusting.token("read", "admin")
    held, ask = await trusting.login(text), trusting.visitor.ask
    await trusting.tokens.revoke(text[3:11])
    for path, headers in (("/api/v1/tokens", held), (STATUS, {**held, "Via": "x"})):
        answer = await ask("GET", path, headers)
        assert is_a_refusal(answer, 401)
        assert "session has ended" in answer.document["error"]
        cookie = SimpleCookie(answer.headers["Set-Cookie"])[COOKIE]
        assert (cookie.value, cookie["max-age"], cookie["path"]) == ("", "0", "/")
    for headers in ({"Via": "x"}, {**held, **bearer("hf_")}):  # none, and one that is not judged
        answer = await ask("GET", STATUS, headers)
        assert is_a_refusal(answer, 401)
        assert "Set-Cookie" not in answer.headers


async def test_who_logs_in_anew_leaves_no_session_behind(site: Entrance) -> None:
    text = await site.token()
    held = await site.login(text)
    own = {**held, "Origin": site.visitor.origin}
    assert (await site.visitor.ask("POST", SESSION, own, {"token": text})).status == 200
    assert is_a_refusal(await site.visitor.ask("GET", STATUS, held), 401)
    assert len(site.sessions._held) == 1


async def test_it_ends_when_it_was_left(site: Entrance) -> None:
    held = await site.login(await site.token())
    for _ in range(3):
        site.clock.now_s += IDLE_S - 1
        assert (await site.visitor.ask("GET", STATUS, held)).status == 200
    site.clock.now_s += IDLE_S
    assert is_a_refusal(await site.visitor.ask("GET", STATUS, held), 401)


async def test_it_ends_in_any_case(site: Entrance) -> None:
    held = await site.login(await site.token())
    begun_s = site.clock.now_s
    while site.clock.now_s < begun_s + LIFE_S - IDLE_S / 2:
        assert (await site.visitor.ask("GET", STATUS, held)).status == 200
        site.clock.now_s += IDLE_S / 2
    site.clock.now_s = begun_s + LIFE_S
    assert is_a_refusal(await site.visitor.ask("GET", STATUS, held), 401)


async def test_who_follows_a_stream_is_not_idle(site: Entrance) -> None:
    held = await site.login(await site.token())
    (session,) = site.sessions._held.values()
    session.under_way += 1  # as entry/inside.py notes it
    site.clock.now_s += 2 * IDLE_S
    assert (await site.visitor.ask("GET", STATUS, held)).status == 200
    session.under_way -= 1
    assert session.under_way == 0
    site.clock.now_s += IDLE_S
    assert is_a_refusal(await site.visitor.ask("GET", STATUS, held), 401)


async def test_it_ends_with_its_token(site: Entrance) -> None:
    text = await site.token()
    held = await site.login(text)
    await site.tokens.revoke(text[3:11])
    assert is_a_refusal(await site.visitor.ask("GET", STATUS, held), 401)
    assert site.sessions._held == {}


async def test_there_are_so_many_and_the_one_left_for_longest_makes_room(site: Entrance) -> None:
    text, other = await site.token(), await site.token(name="another")
    apart = await site.login(other)
    held = []
    for _ in range(SESSIONS_MAX):
        site.clock.now_s += 1
        held.append(await site.login(text))
    site.clock.now_s += 1
    assert (await site.visitor.ask("GET", STATUS, held[0])).status == 200
    held.append(await site.login(text))
    statuses = [(await site.visitor.ask("GET", STATUS, one)).status for one in [apart, *held]]
    assert statuses == [200, 200, 401, *[200] * (SESSIONS_MAX - 1)]
    assert len(site.sessions._held) == SESSIONS_MAX + 1


async def test_the_cookie_is_in_no_memory_of_ours(site: Entrance) -> None:
    held = await site.login(await site.token())
    assert held["Cookie"].partition("=")[2] not in repr(list(site.sessions._held))


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
async def test_a_page_of_another_port_changes_nothing(site: Entrance, method: str) -> None:
    """For a browser it is the same site, so the cookie goes with it."""
    held = await site.login(await site.token("read", "infer", "operate", "admin"))
    token = site.tokens.all()[0]
    pages = [{}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "null"}]
    pages += [{"Sec-Fetch-Site": where} for where in ("same-site", "cross-site", "none")]
    for page in pages:
        for door in ("/api/v1/tokens", f"/api/v1/tokens/{token.id}", SESSION):
            answer = await site.visitor.ask(method, door, {**held, **page}, b"{}")
            assert answer.status in ((403, 405) if not page.get("Origin") else (403,)), page
    assert site.tokens.all() == [token]
    assert (await site.visitor.ask("GET", STATUS, held)).status == 200


@pytest.mark.parametrize("where", ["same-site", "cross-site"])
@pytest.mark.parametrize("mode", ["no-cors", "cors", "websocket", None])
async def test_a_page_of_others_loads_nothing_but_a_link_to_here_may_be_followed(
    site: Entrance, where: str, mode: str | None
) -> None:
    """It could not read it; but keep streams open, as many as the caller that it rides on."""
    said = {"Sec-Fetch-Site": where, **({"Sec-Fetch-Mode": mode} if mode else {})}
    held = await site.login(await site.token("read"))
    assert (await site.visitor.ask("GET", STATUS, {**held, **said})).status == 403
    said["Sec-Fetch-Mode"] = "navigate"
    assert (await site.visitor.ask("GET", STATUS, {**held, **said})).status == 200


@pytest.mark.parametrize(
    ("origin", "secure", "own"),
    [
        ("http://device:8080", False, True),
        ("https://device:8080", True, True),
        ("https://device:8080", False, True),  # a proxy ends TLS
        ("http://device:8080", True, False),  # a page that came without TLS
        ("http://device", False, False),
        ("http://device:80800", False, False),
        ("http://evil:8080", False, False),
        ("ftp://device:8080", False, False),
        ("chrome-extension://device:8080", False, False),
        ("://device:8080", False, False),
        ("device:8080", False, False),
    ],
)
def test_which_page_is_our_own(origin: str, secure: bool, own: bool) -> None:
    assert guard._is_own(origin, "device:8080", secure) == own


async def test_two_origins_are_no_page_of_ours(trusting: Entrance) -> None:
    ours, theirs = ("Origin", trusting.visitor.origin), ("Origin", "http://evil.example")
    for origins in ((ours, ours), (ours, theirs), (theirs, ours)):
        assert is_a_refusal(await trusting.visitor.ask("GET", STATUS, origins), 403), origins
    assert (await trusting.visitor.ask("GET", STATUS, [ours])).status == 200


async def test_a_websocket_of_another_port_is_refused(site: Entrance) -> None:
    held = await site.login(await site.token())
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert is_a_refusal(await site.visitor.ask("GET", STATUS, {**held, **upgrade}), 403)
