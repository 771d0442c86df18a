"""The doors of the configuration's versions: what there is, and an operator's orders."""

import logging
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from agent.api.entry.body import Bound, body_of
from agent.api.entry.guard import caller_of
from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, order_of, query_of
from agent.api.form.route import Route, get, post
from agent.errors import ConfigError, RequestError
from agent.forms import Scope
from agent.versions.shown import ConfigApplied, ConfigShown, DocumentShown
from agent.versions.versions import Versions
from agent.versions.wish import CONFIRM_S, Window, Wish

log = logging.getLogger("config")
CONFIG = "/api/v1/config"
ADMIN: tuple[Scope, ...] = ("admin",)
BODY = Bound(512 << 10, "leave comments out")  # what JSON makes of the largest document
FORM = '{"patch": {"log_level": "debug"}} or {"document": "link: ..."}'
Words = Annotated[str, Meta(max_length=400)]


class ApplyOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of an apply: a whole `document` (YAML), or a merge `patch` (RFC 7396) of the live one.

    `live`: only if this version is live. After `confirm_s` it is judged (`auto`), or taken back
    unless somebody has confirmed it (`manual`). `dry_run`: only say what would be done.
    """

    document: str | None = None
    patch: dict[str, Any] | None = None
    live: int | None = None
    confirm: Literal["auto", "manual"] = "auto"
    confirm_s: Window = CONFIRM_S
    dry_run: bool = False
    why: Words = ""


class RollbackOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a rollback: to this version; null: to the former one."""

    number: int | None = None
    why: Words = ""


class ConfirmOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a confirmation: only if this version is live."""

    number: int | None = None
    why: Words = ""


class ShowQuery(Struct, frozen=True):
    """Which version; by default the live one."""

    number: int | None = None


class ConfigDoors:
    """The routes. They may be asked for by who administers alone: a configuration says who may."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            get(CONFIG, self._show, "The versions of the configuration.", ConfigShown),
            get(
                f"{CONFIG}/document",
                self._document,
                "A version as it is written.",
                DocumentShown,
                scopes=ADMIN,
                query=ShowQuery,
                refuses=(404,),
            ),
            post(
                f"{CONFIG}/apply",
                self._apply,
                "Have another configuration, on trial.",
                ConfigApplied,
                scopes=ADMIN,
                body=ApplyOrder,
                refuses=(409,),
            ),
            post(
                f"{CONFIG}/rollback",
                self._roll_back,
                "Have a former version of the configuration.",
                ConfigApplied,
                scopes=ADMIN,
                body=RollbackOrder,
                refuses=(404, 409),
            ),
            post(
                f"{CONFIG}/confirm",
                self._confirm,
                "The live version of the configuration stays.",
                ConfigShown,
                scopes=ADMIN,
                body=ConfirmOrder,
                refuses=(409,),
            ),
        ]

    async def _show(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(self._versions.shown())

    async def _document(self, request: web.Request) -> web.Response:
        query = query_of(request, ShowQuery)
        return document(await self._versions.document(query.number))

    async def _apply(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        order = _apply_order(await body_of(request, BODY))
        wish = Wish(
            document=None if order.document is None else order.document.encode(),
            patch=order.patch,
            live=order.live,
            confirm=order.confirm,
            confirm_s=order.confirm_s,
            who=caller_of(request).described,
            why=order.why,
        )
        try:
            found = await (self._versions.plan if order.dry_run else self._versions.apply)(wish)
        except ConfigError as error:
            raise RequestError(str(error), error.hint) from error
        return document(found)

    async def _roll_back(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        order = await order_of(request, RollbackOrder, '{"number": 3} or {}')
        try:
            found = await self._versions.roll_back(order.number, why=_why(request, order.why))
        except ConfigError as error:
            raise RequestError(str(error), error.hint) from error
        return document(found)

    async def _confirm(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        order = await order_of(request, ConfirmOrder, '{"number": 3} or {}')
        return document(await self._versions.confirm(order.number, _why(request, order.why)))


def _why(request: web.Request, why: str) -> str:
    said = f"ordered by {caller_of(request).described}"
    return f"{said}: {why}" if why else said


def _apply_order(body: Any) -> ApplyOrder:
    """Raises RequestError."""
    try:
        order = msgspec.json.decode(body or b"{}", type=ApplyOrder)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body of {CONFIG}/apply: {error}", f"send {FORM}") from error
    if (order.document is None) == (order.patch is None):
        raise RequestError(f"the body of {CONFIG}/apply: one of document and patch", f"send {FORM}")
    return order
