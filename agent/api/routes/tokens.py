"""The doors of the API tokens: make one, see which there are, take one back."""

from typing import Annotated

from aiohttp import web
from msgspec import Meta, Struct

from agent.api.entry.refusals import log
from agent.api.entry.tokens import NAME_CHARS_MAX, Token, Tokens
from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, order_of, query_of
from agent.api.form.route import Route, get, post
from agent.forms import SCOPES, Scope

TOKENS = "/api/v1/tokens"
FORM = f'{{"name": "line 4", "scopes": ["read", "infer"]}}; scopes: {", ".join(SCOPES)}'


class TokenOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body: for whom it is, and what he may do."""

    name: Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=len(SCOPES))]


class NewToken(Struct, frozen=True):
    """One that was made; `token` is shown this once."""

    id: str
    name: str
    scopes: list[Scope]
    token: str


class TokenRow(Struct, frozen=True):
    """One that there is; `created_us` is a wall label."""

    id: str
    name: str
    scopes: list[Scope]
    created_us: int


class TokenRows(Struct, frozen=True):
    """All that there are."""

    tokens: list[TokenRow]


class RevokedToken(Struct, frozen=True):
    """One that lets nobody in any more."""

    id: str
    name: str
    revoked: bool


class TokenDoors:
    """The routes."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def routes(self) -> list[Route]:
        """What is served."""
        admin: tuple[Scope, ...] = ("admin",)
        return [
            get(TOKENS, self._list, "The tokens that let programs in.", TokenRows, scopes=admin),
            post(
                *(TOKENS, self._create, "Make a token.", NewToken),
                scopes=admin,
                status=201,
                body=TokenOrder,
            ),
            Route(
                *("DELETE", f"{TOKENS}/{{id}}", self._revoke, admin),
                "Take a token back: it lets nobody in, and ends what it was used for.",
                {200: RevokedToken},
            ),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(TokenRows([_row(token) for token in self._tokens.all()]))

    async def _create(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        order = await order_of(request, TokenOrder, FORM)
        token, text = await self._tokens.create(order.name, order.scopes)
        said = ", ".join(token.scopes)
        log.info("an administrator ordered: make token %s %r: %s", token.id, token.name, said)
        answer = document(NewToken(token.id, token.name, token.scopes, text), 201)
        answer.headers["Cache-Control"] = "no-store"
        return answer

    async def _revoke(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        token = await self._tokens.revoke(request.match_info["id"])
        log.info("an administrator ordered: revoke token %s %r", token.id, token.name)
        return document(RevokedToken(token.id, token.name, revoked=True))


def _row(token: Token) -> TokenRow:
    return TokenRow(token.id, token.name, token.scopes, token.created_us)
