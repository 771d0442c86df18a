"""The doors of a person's browser: a token is typed once, and a cookie stands for it until logout.

The cookie is HttpOnly: no script reads it; SameSite=Strict: no page of another site has it sent;
Secure wherever the page came by TLS. A browser sends it to every port of this host.
"""

from typing import Annotated

from aiohttp import web
from msgspec import Meta, Struct

from agent.api.entry.access import IMPOSTOR, NOBODY, Caller, address_of
from agent.api.entry.guard import caller_of
from agent.api.entry.refusals import Refusals
from agent.api.entry.sessions import COOKIE, LIFE_S, Sessions, take_cookie
from agent.api.entry.tokens import Tokens
from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, order_of, query_of
from agent.api.form.route import Route, get
from agent.forms import SCOPES, Scope

SESSION = "/api/v1/session"
TOKEN_CHARS_MAX = 256


class Login(Struct, frozen=True, forbid_unknown_fields=True):
    """Body: the token that was typed."""

    token: Annotated[str, Meta(max_length=TOKEN_CHARS_MAX)]


class Who(Struct, frozen=True):
    """Whoever asks: the name of his token, and what he may do."""

    name: str
    scopes: list[Scope]


class Begun(Struct, frozen=True):
    """A session, whose cookie goes with this answer."""

    name: str
    scopes: list[Scope]
    expires_s: float


class SessionDoors:
    """The routes. They are open: here one says who he is."""

    def __init__(self, tokens: Tokens, sessions: Sessions, refusals: Refusals) -> None:
        self._tokens = tokens
        self._sessions = sessions
        self._refusals = refusals

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            get(
                *(SESSION, self._who, "Who asks, and what he may do.", Who),
                scopes=(),
                refuses=(401,),
            ),
            Route(
                *("POST", SESSION, self._begin, (), "Log in with a token.", {200: Begun}),
                body=Login,
                refuses=(401,),
                tells={200: ("Set-Cookie",)},
            ),
            Route(
                *("DELETE", SESSION, self._end, (), "Log out.", {200: Who}),
                tells={200: ("Set-Cookie",)},
            ),
        ]

    async def _who(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        caller = caller_of(request)
        if caller == IMPOSTOR:
            return self._unknown(request)
        return document(_who(caller))

    async def _begin(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        order = await order_of(request, Login, '{"token": "hf_..."}')
        token = self._tokens.shown(order.token.strip())
        if token is None:
            return self._unknown(request)
        if former := caller_of(request).session:
            self._sessions.end(former)
        answer = document(Begun(token.name, token.scopes, LIFE_S))
        page_by_tls = request.headers.get("Origin", "").startswith("https://")
        answer.set_cookie(
            *(COOKIE, self._sessions.begin(token)),
            max_age=int(LIFE_S),
            path="/",
            httponly=True,
            samesite="Strict",
            secure=request.secure or page_by_tls,  # the latter behind a proxy
        )
        return _unkept(answer)

    async def _end(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        if session := caller_of(request).session:
            self._sessions.end(session)
        answer = document(_who(NOBODY))
        take_cookie(answer)
        return _unkept(answer)

    def _unknown(self, request: web.Request) -> web.Response:
        return self._refusals.unknown_token(address_of(request.transport), request.path)


def _who(caller: Caller) -> Who:
    """Nobody's name is told to nobody, whatever he showed."""
    known = caller if caller.scopes else NOBODY
    return Who(known.name, [scope for scope in SCOPES if scope in known.scopes])


def _unkept(answer: web.Response) -> web.Response:
    answer.headers["Cache-Control"] = "no-store"
    return answer
