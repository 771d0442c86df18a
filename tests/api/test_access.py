"""Every route of a whole agent, times everybody who might ask: who is let in, and who is not."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from aiohttp import web

from agent import config_file
from agent.api.entry import guard, refusals
from agent.api.entry.access import OPERATOR
from agent.api.entry.room import Room
from agent.api.form.route import PLACE, Route
from agent.api.routes.inference import Call, Reply
from agent.app import App
from agent.commands import trust
from agent.commands.verb import Call as Ordered
from agent.commands.verb import NoArgs, again
from agent.forms import SCOPES
from tests.api.entrance import Still, Visitor, bearer, is_a_refusal
from tests.commands.catalogued import verbs
from tests.outside import ROOT

ALL = frozenset(SCOPES)
SUBSETS = list(chain.from_iterable(combinations(SCOPES, n) for n in range(1, len(SCOPES) + 1)))
FORWARDED = {"X-Forwarded-For": "10.0.0.7"}
OPEN = {  # nobody is asked who he is; whoever adds one has thought about it
    "/api/v1/session",
    "/api/v1/health/live",
    "/api/v1/health/ready",
    "/v2/health/live",
    "/v2/health/ready",
}
ASKS = {"/v2/repository/index"}  # POST, and changes nothing
WITHIN = {
    "/api/v1/commands",
    "/api/v1/commands/{command}",
}  # each command asks for a scope of its own (below)


class Guest(NamedTuple):
    """Somebody who asks, and what he may; None: he is not known, and is told so with 401."""

    what: str
    scopes: frozenset[str] | None
    headers: Iterable[tuple[str, str]] = ()
    by: str = "tcp"
    acts: bool = True  # whether he may change anything
    ended: bool = False  # what he may not, he is told with 401, and that his session has ended


class Recorder:
    """In the place of the short way's inference: what was asked is noted, and not done."""

    def __init__(self, done: list[str]) -> None:
        self.room = Room()
        self._done = done

    def begin(self, model: str, *_: Any) -> Call:
        self._done.append(model)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.set_result(None)
        return Call("", answer)

    def reply(self, _: Call) -> Reply:
        return Reply(200, "application/json", [b"{}"])

    def end(self) -> None:
        pass

    def packing(self, *_: Any) -> None:
        return None


class Site:
    """A whole agent of which only the doors are open, and behind them nothing happens."""

    def __init__(self, folder: Path) -> None:
        self.done: list[str] = []
        self.socket = str(folder / "holdfast.sock")
        path = folder / "config.yaml"
        whole = {
            "device_id": "device-under-test",
            "models": {"path": str(ROOT / "models")},
            "store": {"path": str(folder / "var" / "holdfast.db")},
            "api": {"port": 0, "socket": self.socket, "rate_per_s_max": None},
            "link": {"broker_url": "mqtt://127.0.0.1:1", "ack_from": "ingest"},
        }
        path.write_text(yaml.safe_dump(whole))
        self.app = App(config_file.load(path), path)
        assert self.app.doors.server._express is not None
        self.app.doors.server._express.inference = Recorder(self.done)  # type: ignore[assignment]
        self.visitor: Visitor

    @property
    def doors(self) -> list[tuple[str, Route]]:
        """What aiohttp serves, method by method."""
        return [(one.method, route) for one, route in self.app.doors.server._guard.routes.items()]

    async def token(self, *scopes: Any) -> str:
        name = f"program {len(self.app.doors.tokens.all())}"
        return (await self.app.doors.tokens.create(name, scopes))[1]

    def begun(self, text: str) -> str:
        """A session's cookie."""
        token = self.app.doors.tokens.shown(text)
        assert token
        sessions = self.app.doors.server._guard.access.sessions
        assert sessions
        return f"holdfast_session={sessions.begin(token)}"


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    clock = Still()
    monkeypatch.setattr("agent.app.Clock", lambda: clock)
    monkeypatch.setattr(refusals, "FAILURES", 1 << 30)  # how many are refused is not the question
    found = Site(tmp_path)

    async def answer(_: web.Request, door: str, __: Any) -> web.Response:
        found.done.append(door)
        return web.json_response({})

    monkeypatch.setattr(guard, "_answer", answer)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(found.app.doors.server)
        found.visitor = Visitor(found.app.doors.server.port, found.socket)
        stack.push_async_callback(found.visitor.close)
        yield found


async def guests(site: Site) -> list[Guest]:
    found = [
        Guest("the unix socket", ALL, by="unix"),
        Guest("a proxy before the unix socket", None, FORWARDED.items(), "unix"),
        Guest("a program on this machine", frozenset({"read", "infer"})),
        Guest("a proxy on this machine", None, FORWARDED.items()),
    ]
    tokens = {scopes: await site.token(*scopes) for scopes in SUBSETS}
    for scopes, text in tokens.items():
        found.append(Guest(f"a token for {scopes}", frozenset(scopes), bearer(text).items()))
    for scopes in (("read",), SCOPES):
        shown, held = bearer(tokens[scopes]), frozenset(scopes)
        found.append(Guest(f"the unix socket, a token for {scopes}", held, shown.items(), "unix"))
        found.append(Guest(f"a proxy, a token for {scopes}", held, {**shown, **FORWARDED}.items()))
    return [*found, *await strangers(site, tokens[SCOPES]), *await browsers(site, tokens)]


async def strangers(site: Site, good: str) -> list[Guest]:
    """Who shows what is no token, or none any more."""
    revoked = await site.token(*SCOPES)
    await site.app.doors.tokens.revoke(revoked[3:11])
    wrong = {
        "a revoked token": f"Bearer {revoked}",
        "another secret": f"Bearer {good[:-1]}{'A' if good[-1] != 'A' else 'Q'}",
        "another id": f"Bearer hf_00000000_{good[12:]}",
        "half a token": f"Bearer {good[:-1]}",
        "a token and more": f"Bearer {good}x",
        "no text": "Bearer ",
        "nothing at all": "",
        "another scheme": f"Basic {good}",
        "no scheme": good,
        "what is no ASCII": "Bearer hf_\N{SUPERSCRIPT TWO}",
    }
    found = []
    for what, text in wrong.items():
        headers = [("Authorization", text)]
        found += [Guest(f"{what}, {by}", None, headers, by) for by in ("tcp", "unix")]
    twice = [("Authorization", f"Bearer {good}")] * 2
    both = [("Authorization", "Bearer hf_"), ("Cookie", site.begun(good))]
    return [*found, Guest("twice", None, twice), Guest("a cookie too", None, both)]


async def browsers(site: Site, tokens: dict[tuple[Any, ...], str]) -> list[Guest]:
    """Who comes with a cookie."""
    own = ("Origin", site.visitor.origin)
    fetched = ("Sec-Fetch-Site", "same-origin")
    near = [("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Mode", "navigate")]
    found = []
    for scopes in (("read",), ("read", "infer"), ("admin",), SCOPES):
        cookie, held = ("Cookie", site.begun(tokens[scopes])), frozenset(scopes)
        found += [
            Guest(f"a session for {scopes}", held, [cookie, own]),
            Guest(f"a session for {scopes}, fetched", held, [cookie, fetched]),
            Guest(f"a session for {scopes}, of an unknown page", held, [cookie], acts=False),
            Guest(f"a session for {scopes}, of another port", held, [cookie, *near], acts=False),
        ]
    last = site.begun(tokens[SCOPES])
    sessions = site.app.doors.server._guard.access.sessions
    assert sessions
    known = sessions.of([last.partition("=")[2]])
    assert known
    sessions.end(known[0])
    expired = site.begun(tokens[SCOPES])
    known = sessions.of([expired.partition("=")[2]])
    assert known
    known[0].ends_s = site.app.core.clock.monotonic()
    doomed = await site.token(*SCOPES)
    orphan = site.begun(doomed)
    await site.app.doors.tokens.revoke(doomed[3:11])
    gone = {"ended": last, "expired": expired, "orphaned": orphan, "unknown": "holdfast_session=x"}
    here = frozenset({"read", "infer"})
    for what, text in gone.items():
        cookie = ("Cookie", text)
        found.append(Guest(f"a session that is {what}", here, [cookie, own], ended=True))
        proxied = [cookie, *FORWARDED.items()]
        found.append(Guest(f"the same, by a proxy, {what}", None, proxied, ended=True))
    found.append(Guest("the same, by the unix socket", ALL, [("Cookie", last)], "unix", ended=True))
    return found


def may(guest: Guest, method: str, route: Route) -> bool:
    if not route.scopes:
        return guest.acts or method in ("GET", "HEAD")
    held = guest.scopes is not None and not guest.scopes.isdisjoint(route.scopes)
    return held and (guest.acts or method in ("GET", "HEAD"))


async def test_each_door_lets_in_whom_it_names_and_nobody_else(site: Site) -> None:
    everybody, met = await guests(site), 0
    for method, route in site.doors:
        path = PLACE.sub("1", route.path)
        body = b"{}" if method == "POST" else None
        # Those that can be asked by the short way are asked by the other one too.
        ways: list[list[tuple[str, str]]] = [[]]
        if path.endswith("/infer"):
            ways.append([("Accept", "*/*"), ("Cookie", "other=x")])
        for guest in everybody:
            for way in ways:
                site.done.clear()
                headers = [*guest.headers, *way]
                answer = await site.visitor.ask(method, path, headers, body, guest.by)
                said = f"{guest.what}: {method} {path}: {answer}"
                if may(guest, method, route):
                    assert answer.status == 200, said
                    assert len(site.done) == 1, said
                else:
                    unknown = route.scopes and (guest.scopes is None or guest.ended)
                    taken = "Max-Age=0" in answer.headers.get("Set-Cookie", "")
                    assert taken == bool(unknown and guest.ended), said
                    assert answer.status == (401 if unknown else 403), said
                    assert ("WWW-Authenticate" in answer.headers) == bool(unknown), said
                    assert method == "HEAD" or is_a_refusal(answer, answer.status), said
                    assert site.done == [], said
                assert answer.headers["X-Request-Id"]
                met += 1
    assert met > 40 * len(everybody)


async def test_the_takes_of_all_sources_are_for_who_may_read(site: Site) -> None:
    """Who brings sound brings it of any source, and does not see what others are heard to say."""
    door = "/api/v1/audio/takes/microphone/1"
    for scopes, status in (
        (("infer",), 403),
        (("infer", "operate", "admin"), 403),
        (("read",), 200),
    ):
        answer = await site.visitor.ask("GET", door, bearer(await site.token(*scopes)))
        assert answer.status == status, scopes
    assert (await site.visitor.ask("GET", door, FORWARDED)).status == 401


@pytest.mark.parametrize(
    "header",
    [
        *("Forwarded", "Via", "X-Real-IP", "X-Forwarded-For", "X-Forwarded-Host"),
        *("X-Forwarded-Proto", "x-forwarded-port", "X-FORWARDED-SSL"),
    ],
)
async def test_who_is_forwarded_is_not_of_this_machine(site: Site, header: str) -> None:
    for by in ("tcp", "unix"):
        for method, path in (("GET", "/api/v1/status"), ("POST", "/v2/models/m/infer")):
            answer = await site.visitor.ask(method, path, {header: ""}, b"{}", by)
            assert is_a_refusal(answer, 401), (by, path)
    assert site.done == []


async def test_each_order_is_one_line_that_names_who_gave_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "api")
    shown, orders = bearer(await site.token(*SCOPES)), 0
    for method, route in site.doors:
        caplog.clear()
        await site.visitor.ask(method, PLACE.sub("1", route.path), shown, b"{}")
        said = [one for one in caplog.messages if one.startswith("ORDER")]
        if method not in ("GET", "HEAD") and set(route.scopes) & {"operate", "admin"}:
            by = "token 'program 0' from 127.0.0.1"
            assert said == [f"ORDER {method} {route.path} by {by}: 200"]
            orders += 1
        else:
            assert said == [], route.path
    assert orders > 15


async def test_the_doors_at_which_nobody_is_asked_are_few(site: Site) -> None:
    for _, route in site.doors:
        page = "/api/" not in route.path and "/v2" not in route.path and route.path != "/metrics"
        assert route.scopes or route.path in OPEN or page, route.path
        assert set(route.scopes) <= ALL
        changes = route.method not in ("GET", "HEAD") and route.path not in ASKS | WITHIN
        # Of what changes something, these alone are for who may only ask or read.
        if changes and not set(route.scopes) <= {"operate", "admin"}:
            assert "read" not in route.scopes, route.path
    assert OPERATOR.scopes == ALL


@pytest.mark.parametrize("scopes", SUBSETS, ids="+".join)
def test_each_command_asks_for_its_own_scope(scopes: tuple[str, ...]) -> None:
    for shown in verbs():
        verb = again(shown.name, "", NoArgs, nothing, shown.scope)  # type: ignore[arg-type]
        if shown.scope in scopes:
            trust.allowed(verb, scopes)
        else:
            with pytest.raises(trust.Refused, match=f"takes the scope {shown.scope}"):
                trust.allowed(verb, scopes)


def test_what_takes_the_device_out_of_service_is_grave_and_not_for_readers() -> None:
    grave = {one.name for one in verbs() if one.grave}
    assert {"device.restart", "device.reboot", "watchdog.test", "watchdog.disarm"} <= grave
    assert not any(one.scope in ("read", "infer") for one in verbs() if one.grave)


async def nothing(_: NoArgs, __: Ordered) -> None: ...
