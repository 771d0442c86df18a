"""Who may come in: checks before every route.

`Host` and `Origin` are checked, so that a page in a browser on this machine cannot reach the agent
under a name of its own (DNS rebinding); then how often the caller asks, and whether he holds what
the route asks for.

A browser sends a session's cookie for whatever page asks, as far as SameSite=Strict lets it: pages
of other sites never, but for a browser another port of this host is the same site. So what changes
something by a cookie must say that our own page asks it (`Origin`, or `Sec-Fetch-Site`); every
browser of today sends the one or the other. What only tells is kept from other pages by the browser
itself, since CORS is off.

Each answer names its request in X-Request-Id: as the client called it, else by a name of ours.

An order, which is what changes something for those who operate or administer, leaves one line in
the log that says who gave it, and what became of it. What it was about, the lines of its route say.
"""

import asyncio
import itertools
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiohttp import web

from agent import logs
from agent.api.entry.access import IMPOSTOR, NOBODY, Access, Caller, Headers, address_of
from agent.api.entry.astray import astray
from agent.api.entry.coding import KNOWN, WINDOW, coding_of
from agent.api.entry.inside import Inside
from agent.api.entry.rates import Rate
from agent.api.entry.refusals import SERVER, Refusals, refusal, too_many
from agent.api.entry.visiting import served
from agent.api.form.route import Handler, Route
from agent.clock import Clock
from agent.errors import (
    BusyError,
    HoldfastError,
    NotNow,
    NotThere,
    RequestError,
    StoreError,
    StoreFull,
    TooLarge,
    TooSlow,
)
from agent.forms import Scope

log = logging.getLogger("api")
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
PORT_MAX = 65_535
STORE_RETRY_S = 5.0  # as often the agent itself looks whether the store works (status.py)
REFUSED: dict[type[RequestError], int] = {NotThere: 404, NotNow: 409, TooLarge: 413, TooSlow: 408}
SAFE = ("GET", "HEAD", "OPTIONS")
SCHEMES = ("http", "https")
ORDERING: frozenset[Scope] = frozenset({"operate", "admin"})
OWN_PAGE = "same-origin"
EXPECTED = "100-continue"
REQUEST_ID = "X-Request-Id"
REQUEST_IDS = re.compile(r"[A-Za-z0-9._-]{1,64}")
ID, CALLER = web.RequestKey("id", str), web.RequestKey("caller", Caller)
# A host name or an address, and a port; nothing else that a URL may hold, as a user's name.
HOST = re.compile(r"(?:([A-Za-z0-9._-]+)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?")


def fresh_ids() -> Callable[[], str]:
    """Names of requests, each once: a random start, then numbers."""
    start, numbers = secrets.token_hex(4), itertools.count(1)
    return lambda: f"{start}-{next(numbers)}"


class Guard:
    """The first middleware; it also counts the requests that are under way."""

    def __init__(
        self,
        access: Access,
        hosts: Iterable[str],
        clock: Clock,
        rate_per_s_max: float | None = None,
        ids: Callable[[], str] | None = None,
    ) -> None:
        """`rate_per_s_max` is for each token, and each address without one; a second of it may be
        saved up. Programs on this machine and the unix socket have none without a token: the first
        are many behind one address, and the second is how an operator gets in when all else fails.
        """
        self.active_requests = 0
        self.routes: Mapping[Any, Route] = {}  # by aiohttp's own, once they are served
        self.access = access
        self.refusals = Refusals(clock)
        self.fresh_id = ids or fresh_ids()
        self._hosts = LOCAL_HOSTS | {host.lower() for host in hosts}
        self.names: frozenset[str] = frozenset()  # that this machine has out there, if any may come
        self._inside = Inside(access, clock)
        self._rates = None
        if rate_per_s_max is not None:  # apart: a flood of addresses must not take a token's place
            self._rates = [Rate(rate_per_s_max, max(1, rate_per_s_max), clock) for _ in range(2)]

    def answers_to(self, host: str) -> bool:
        """Whether this agent is called so, in a `Host` header."""
        named = _named(host)
        return named in self._hosts or named in self.names

    def wait_s(self, caller: Caller, transport: asyncio.BaseTransport | None) -> float:
        """Take a request from what a caller may ask; 0.0, or when he may again."""
        if self._rates is None or caller.free:
            return 0.0
        by_token, by_address = self._rates
        return (
            by_token.take(caller.token) if caller.token else by_address.take(address_of(transport))
        )

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse, or count and hand on."""
        request[ID] = name = request_id(request.headers) or self.fresh_id()
        request[CALLER] = caller = self.access.caller(request.transport, request.headers)
        self.active_requests += 1
        try:
            with served(request), logs.naming(name), self._inside.stay(caller, request.transport):
                refused = self._refusal(request, caller)
                return refused or await self._let_in(request, caller, handler)
        finally:
            self.active_requests -= 1

    async def name_answer(self, request: web.Request, answer: web.StreamResponse) -> None:
        """Say in an answer's header which request it is for, and who answers; a signal of
        aiohttp's."""
        name = request.get(ID) or request_id(request.headers)  # none yet: aiohttp refused it
        answer.headers[REQUEST_ID] = name or self.fresh_id()
        answer.headers["Server"] = SERVER

    async def _let_in(
        self, request: web.Request, caller: Caller, handler: Handler
    ) -> web.StreamResponse:
        """The handler's answer, with a line in the log where it was an order."""
        door, route = self._door(request), self.routes.get(request.match_info.route)
        if route is None or not _is_order(route):
            return await self._answer(request, door, handler)
        by, outcome = _giver(caller, address_of(request.transport)), "no answer"
        try:
            answer = await self._answer(request, door, handler)
            outcome = str(answer.status)
            return answer
        finally:
            log.info("ORDER %s by %s: %s", door, by, outcome)

    def _refusal(self, request: web.Request, caller: Caller) -> web.Response | None:
        host = request.headers.get("Host", "")
        if not self.answers_to(host):
            return refusal(
                421, f"this agent does not answer to the name {host!r}", "add it to api.hosts"
            )
        origins = request.headers.getall("Origin", [])
        if len(origins) > 1 or not all(_is_own(one, host, request.secure) for one in origins):
            named = ", ".join(map(repr, origins))
            return refusal(403, f"pages of {named} may not talk to this agent", "use its own page")
        if _is_built_in(request.headers):
            return refusal(403, "another page may not load from this agent", "use its own page")
        if wait_s := self.wait_s(caller, request.transport):
            return too_many("more requests came than api.rate_per_s_max lets in", wait_s)
        route = self.routes.get(request.match_info.route)
        if route is None:
            return None
        if request.headers.get("Expect", EXPECTED).lower() != EXPECTED:
            return refusal(417, "an Expect that is not known here", f"known: {EXPECTED}, or none")
        if caller.session and _may_be_foreign(request):
            return refusal(
                403,
                "a session's cookie alone changes nothing: it is not said whose page asks",
                "use this agent's own page, or `Authorization: Bearer` with a token",
            )
        if not caller.may(route.scopes):
            return self._stopped(request, route, caller)
        return _coded(request, route)

    async def _answer(
        self, request: web.Request, door: str, handler: Handler
    ) -> web.StreamResponse:
        try:
            return await _answer(request, door, handler)
        except web.HTTPException as error:
            return astray(request, error, (one.path for one in self.routes.values()))

    def _stopped(self, request: web.Request, route: Route, caller: Caller) -> web.Response:
        """The answer to somebody who does not hold what a route asks for."""
        address, door = address_of(request.transport), self._door(request)
        if caller == IMPOSTOR:
            return self.refusals.unknown_token(address, door)
        needed = " or ".join(route.scopes)
        if caller.ended:
            return self.refusals.ended(address, door, needed)
        if caller == NOBODY:
            return self.refusals.nobody(address, door, needed)
        return refusal(
            403,
            f"{door} needs {needed}, which {caller.name} does not hold",
            "use a token that has it, or the unix socket (api.socket), as holdfast does",
        )

    def _door(self, request: web.Request) -> str:
        """Which door was asked for, without what the client wrote in its places."""
        route = self.routes.get(request.match_info.route)
        return f"{request.method} {route.path}" if route else "no door of ours"


def _coded(request: web.Request, route: Route) -> web.Response | None:
    """A refusal, where the body comes in a form that nobody here takes apart."""
    coding = coding_of(request.headers.get("Content-Encoding"))
    if coding is None or (coding in WINDOW if route.unpacks else not request.body_exists):
        return None
    known = KNOWN if route.unpacks else "identity"
    answer = refusal(415, f"Content-Encoding: {coding[:80]!r} is not taken here", f"known: {known}")
    answer.headers["Accept-Encoding"] = known
    return answer


def caller_of(request: web.Request) -> Caller:
    """Who asks."""
    return request[CALLER]


def key_of(request: web.Request) -> str:
    """As whom he is counted, where no one may have all: by his token, else by his address."""
    return caller_of(request).token or address_of(request.transport)


def request_id(headers: Headers) -> str | None:
    """What the client calls its request, where that can be repeated."""
    said = headers.getall(REQUEST_ID, [])
    return said[0] if len(said) == 1 and REQUEST_IDS.fullmatch(said[0]) else None


async def _answer(request: web.Request, door: str, handler: Handler) -> web.StreamResponse:
    """The handler's answer, or what became of it in the form of all errors.

    Raises what aiohttp says of a request that no door is for.
    """
    try:
        return await handler(request)
    except StoreFull as error:  # time does not help, what the hint says does
        return refusal(507, str(error), error.hint)
    except StoreError as error:  # the agent runs, and goes on when the store does
        return refusal(503, str(error), error.hint, STORE_RETRY_S)
    except BusyError as error:
        return refusal(503, str(error), error.hint, error.retry_s)
    except RequestError as error:
        return refusal(REFUSED.get(type(error), 400), str(error), error.hint)
    except HoldfastError as error:
        return refusal(500, str(error), error.hint)
    except web.RequestPayloadError as error:
        said = " ".join(str(error).split())
        return refusal(400, f"the body: {said}", "send it whole, and encoded as its header says")
    except web.HTTPException:  # of aiohttp's router: there is no such door
        raise
    except Exception as error:  # the border: what one request meets must not end the others
        if isinstance(error, ConnectionError) and _left(request):
            log.debug("%s was not sent to its end", door)  # anybody may do it, and often
            return refusal(400, "the body did not come to its end", "send it whole, and in time")
        log.exception("%s failed", door)
        return refusal(
            500, "the agent met a fault of its own", "look at its log, and report what it says"
        )


def _is_order(route: Route) -> bool:
    """Whether it changes something for those who operate or administer."""
    return route.method not in SAFE and not ORDERING.isdisjoint(route.scopes)


def _giver(caller: Caller, address: str) -> str:
    """Who gave an order, and from where; each is said once."""
    return caller.described + (f" from {address}" if address != caller.name else "")


def _is_own(origin: str, host: str, secure: bool) -> bool:
    """Whether a page is this agent's own: of this host and port, and no less protected."""
    scheme, _, where = origin.partition("://")
    return where == host and scheme in SCHEMES and (scheme == "https" or not secure)


def _is_built_in(headers: Mapping[str, str]) -> bool:
    """Whether a page of others has its browser load this, which it could not read, but keep open.

    To follow a link to here is another matter.
    """
    where = ("cross-site", "same-site")
    return headers.get("Sec-Fetch-Site") in where and headers.get("Sec-Fetch-Mode") != "navigate"


def _may_be_foreign(request: web.Request) -> bool:
    """Whether another page could have made a browser send this, with the cookie."""
    headers = request.headers
    acts = request.method not in SAFE or "Upgrade" in headers  # CORS does not hold for WebSockets
    return acts and "Origin" not in headers and headers.get("Sec-Fetch-Site") != OWN_PAGE


def _left(request: web.Request) -> bool:
    """Whether the client is there no more."""
    return request.transport is None or request.transport.is_closing()


def _named(host: str) -> str | None:
    """The name or address in a `Host` header, in lower case; None if it is not in its form."""
    match = HOST.fullmatch(host)
    if match is None or int(match[3] or 0) > PORT_MAX:
        return None
    return (match[1] or match[2]).lower()
