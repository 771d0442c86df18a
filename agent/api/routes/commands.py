"""The doors of the commands: order one, see what becomes of it, see what can be ordered."""

import secrets
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta, Struct, field

from agent.api.entry.body import Bound
from agent.api.entry.guard import caller_of
from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, order_of, query_of
from agent.api.form.route import Route, get
from agent.commands.catalogue import VerbShown
from agent.commands.desk import Desk
from agent.commands.twin import Twin
from agent.errors import NotNow
from agent.forms import SCOPES
from agent.protocol.commands import (
    COMMAND_BYTES_MAX,
    Command,
    CommandId,
    CommandName,
    Instant,
    Order,
    Result,
)
from agent.protocol.twin import Reported
from agent.store.journal import Journal

COMMANDS = "/api/v1/commands"
COUNT_MAX = 1000
NUMBER_MAX = (1 << 63) - 1
WAIT_S_MAX = 60.0
REFUSED = {"not_allowed": 403, "id_taken": 409, "not_now": 409, "full": 503}  # else 400
BODY = Bound(2 * COMMAND_BYTES_MAX, "send less in one command")  # JSON may escape each letter
FORM = '{"name": "sync.pause", "args": {"for_s": 3600}}'


class Ordered(Struct, frozen=True, forbid_unknown_fields=True):
    """A command; without an `id` it gets one. The same id again is the same command."""

    name: CommandName
    args: dict[str, Any] = {}
    id: CommandId | None = None
    expires: Instant | None = None


class WaitQuery(Struct, frozen=True):
    """How long to wait for its end."""

    wait_s: Annotated[float, Meta(ge=0, le=WAIT_S_MAX)] = 0.0


class PageQuery(Struct, frozen=True):
    """Below which number, and how many."""

    before: Annotated[int, Meta(ge=1, le=NUMBER_MAX)] | None = None
    count: Annotated[int, Meta(ge=1, le=COUNT_MAX)] = 100


class CountQuery(Struct, frozen=True):
    """How many of the last."""

    count: Annotated[int, Meta(ge=1, le=COUNT_MAX)] = 100


class CommandsShown(Struct, frozen=True):
    """The commands, the newest first; `next` is the number below which the next begin."""

    commands: list[Result]
    next: int | None


class RefusalRow(Struct, frozen=True):
    """What came and was not accepted; `at_us` is a wall label."""

    number: int
    id: str
    name: str
    door: str
    issuer: str
    by: str
    reason: str
    message: str
    at_us: int


class Refusals(Struct, frozen=True):
    """The last of them, the oldest first."""

    refusals: list[RefusalRow]


class CatalogueShown(Struct, frozen=True):
    """All that can be ordered."""

    commands: list[VerbShown] = field(default_factory=list)


class CommandDoors:
    """The routes."""

    def __init__(self, desk: Desk, journal: Journal, twin: Twin) -> None:
        self._desk = desk
        self._journal = journal
        self._twin = twin

    def routes(self) -> list[Route]:
        """What is served."""
        one = f"{COMMANDS}/{{command}}"
        return [
            Route(
                *("POST", COMMANDS, self._order, SCOPES, "Order something."),
                {200: Result, 202: Result},
                WaitQuery,
                Ordered,
                refuses=(409, 503),
                about="200: it has ended; 202: it is accepted, or runs. Whoever asks must hold the "
                "scope of the command. A refusal is kept, as those of the other doors are.",
            ),
            get(COMMANDS, self._page, "The commands.", CommandsShown, query=PageQuery),
            get(f"{COMMANDS}/catalogue", self._catalogue, "What can be ordered.", CatalogueShown),
            get(
                f"{COMMANDS}/refusals",
                self._refusals,
                "What was not accepted.",
                Refusals,
                query=CountQuery,
            ),
            get(
                "/api/v1/twin", self._twin_shown, "What is wanted of the device, and is.", Reported
            ),
            get(one, self._show, "What became of a command.", Result, query=WaitQuery),
            Route(
                *("DELETE", one, self._cancel, SCOPES, "Cancel a command that has not begun."),
                {200: Result, 202: Result},
                refuses=(404, 409, 503),
                about="Ordered as `commands.cancel`. 200: it is cancelled, and this is its result; "
                "202: the order is accepted. 409: it runs already, or has ended.",
            ),
        ]

    async def _order(self, request: web.Request) -> web.Response:
        wait_s = query_of(request, WaitQuery).wait_s
        result = await self._ordered(request, await order_of(request, Ordered, FORM, BODY), wait_s)
        if result.state == "refused":
            return _refusal(result)
        return document(self._seen_by(request, result), 200 if result.ended else 202)

    async def _ordered(self, request: web.Request, asked: Ordered, wait_s: float) -> Result:
        """A refusal too. Raises StoreError."""
        caller = caller_of(request)
        command = Command(
            id=asked.id or f"api-{secrets.token_hex(8)}",
            name=asked.name,
            args=asked.args,
            issuer=caller.described,
            expires=asked.expires,
        )
        result = await self._desk.order(Order(command), "http", scopes=caller.scopes)
        if wait_s and not result.ended:
            result = await self._desk.ended(command.id, wait_s)
        return result

    async def _cancel(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        name = request.match_info["command"]
        await self._desk.result(name)  # there is one
        asked = Ordered("commands.cancel", {"id": name})
        result = await self._ordered(request, asked, WAIT_S_MAX)
        if result.state == "refused":
            return _refusal(result)
        if result.state == "failed":
            raise NotNow(result.message, result.hint)
        if not result.ended:
            return document(result, 202)
        return document(self._seen_by(request, await self._desk.result(name)))

    async def _show(self, request: web.Request) -> web.Response:
        wait_s = query_of(request, WaitQuery).wait_s
        result = await self._desk.ended(request.match_info["command"], wait_s)
        return document(self._seen_by(request, result))

    async def _page(self, request: web.Request) -> web.Response:
        asked = query_of(request, PageQuery)
        found = await self._journal.page(asked.before, asked.count)
        following = found[-1].number if len(found) == asked.count else None
        shown = [self._seen_by(request, self._desk.told(one)) for one in found]
        return document(CommandsShown(shown, following))

    def _seen_by(self, request: web.Request, result: Result) -> Result:
        """What a command answered is for those who might have ordered it."""
        if self._desk.scope(result.name) in caller_of(request).scopes:
            return result
        return msgspec.structs.replace(result, result=None)

    async def _catalogue(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(CatalogueShown(self._desk.catalogue.shown()))

    async def _twin_shown(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(self._twin.shown())

    async def _refusals(self, request: web.Request) -> web.Response:
        found = await self._journal.refusals(query_of(request, CountQuery).count)
        return document(
            Refusals(
                [
                    RefusalRow(
                        *(one.number, one.id, one.name, one.door, one.issuer, one.by),
                        *(one.reason, one.message, one.at_us),
                    )
                    for one in found
                ]
            )
        )


def _refusal(result: Result) -> web.Response:
    said = {"error": result.message, "hint": result.hint, "verdict": result.reason}
    return document(said, REFUSED.get(result.reason, 400))
