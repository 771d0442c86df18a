"""The outbox's doors: what is held, whether it adds up, and what an operator decides about it.

A verify takes as long as the store is large, and a door is not held for minutes: POST begins one,
GET says how far it is and, at last, what it found. One runs at a time.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta, Struct, field

from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, order_of, query_of
from agent.api.form.places import Seq
from agent.api.form.route import Route, get, post
from agent.errors import RequestError, StoreError
from agent.records import Range, raw_stream
from agent.store.decisions import Dropped, Retried
from agent.store.entries import Account, Page, Stream, Whole
from agent.store.inventory import COUNT_MAX
from agent.store.outbox import Name
from agent.store.store import Store
from agent.store.streams import SEQ_MAX
from agent.store.verify import Report, Verify
from agent.words import counted

log = logging.getLogger("outbox")
SEQ_DIGITS_MAX = 20
LOGGED_MAX = 20  # faults of a verify; the report has the rest


class DropOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a drop: seqs first..last of an epoch (None: this store's own), and why."""

    first: Seq
    reason: Annotated[str, Meta(min_length=1, max_length=200)]
    last: Seq | None = None
    epoch: str | None = None


class RetryOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a retry: these dead letters, or all from seq `first` on."""

    seqs: Annotated[list[Seq], Meta(max_length=COUNT_MAX)] = field(default_factory=list)
    first: Seq = 1
    epoch: str | None = None


class PageQuery(Struct, frozen=True):
    """From which seq on, how many, dead letters alone, of which epoch (none: this store's own)."""

    first: Seq = field(name="from", default=1)
    count: Annotated[int, Meta(ge=1, le=COUNT_MAX)] = 100
    dead: bool = False
    epoch: str | None = None


class RecordQuery(Struct, frozen=True):
    """Of which epoch (none: this store's own)."""

    epoch: str | None = None


class VerifyQuery(Struct, frozen=True):
    """Deep: the content of every blob is read and checked too."""

    deep: bool = False


class Streams(Struct, frozen=True):
    """All streams; `epoch` is this store's own."""

    epoch: str
    streams: list[Stream]


class Ledger(Struct, frozen=True):
    """The accounts by epoch and stream; `epoch` is this store's own."""

    epoch: str
    epochs: dict[str, dict[str, Account]]


class Failure(Struct, frozen=True):
    """Why a verify came to no end, and what to do about it."""

    error: str
    hint: str


class Progress(Struct, frozen=True):
    """How far the verify is: `counted` of about `total` rows, and at last what it found."""

    running: bool
    deep: bool
    counted: int
    total: int
    report: Report | None
    failure: Failure | None


class Retrying(Retried, frozen=True, kw_only=True):
    """As Retried; `listening`: there is a listener that hears them now."""

    listening: bool


class OutboxDoors:
    """The routes, and the loop that verifies."""

    def __init__(self, store: Store, wake: Callable[[str], bool]) -> None:
        """`wake` has a source's listener look at dead letters; whether there is one."""
        self._store = store
        self._wake = wake
        self._asked = asyncio.Event()
        self._verify: Verify | None = None
        self._report: Report | None = None
        self._error: StoreError | None = None

    def routes(self) -> list[Route]:
        """What is served."""
        stream = "/api/v1/outbox/{stream}"
        return [
            get("/api/v1/ledger", self._ledger, "The loss ledger, epoch by epoch.", Ledger),
            get("/api/v1/outbox", self._streams, "Each stream of the outbox.", Streams),
            # A stream's name ends with what it carries (`.raw`), so none is called so.
            get("/api/v1/outbox/verify", self._verified, "How far the verify is.", Progress),
            post(
                "/api/v1/outbox/verify",
                self._begin_verify,
                "Begin a verify, if none runs.",
                Progress,
                status=202,
                query=VerifyQuery,
            ),
            get(stream, self._page, "The records of a stream.", Page, query=PageQuery),
            get(
                f"{stream}/{{seq}}", self._record, "A record of a stream.", Whole, query=RecordQuery
            ),
            post(
                f"{stream}/drop",
                self._drop,
                "Give records of a stream up.",
                Dropped,
                body=DropOrder,
            ),
            post(
                f"{stream}/retry",
                self._retry,
                "Have the dead letters of a stream tried again.",
                Retrying,
                body=RetryOrder,
            ),
        ]

    async def run(self) -> None:
        """Verify whenever somebody asks, for ever."""
        while True:
            await self._asked.wait()
            assert self._verify is not None  # set with the event
            try:
                self._report = await self._verify.run()
            except StoreError as error:
                self._error = error
            else:
                for fault in self._report.faults[:LOGGED_MAX]:
                    log.error("verify: %s", fault)
            self._asked.clear()

    async def _streams(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        found = await self._store.inventory.streams()
        return document(Streams(self._store.epoch, found))

    async def _ledger(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        epochs = await self._store.inventory.ledger()
        return document(Ledger(self._store.epoch, epochs))

    async def _page(self, request: web.Request) -> web.Response:
        query = query_of(request, PageQuery)
        name = self._name(request, query.epoch)
        page = self._store.inventory.page(name, query.first, query.count, dead=query.dead)
        return document(await page)

    async def _record(self, request: web.Request) -> web.Response:
        name = self._name(request, query_of(request, RecordQuery).epoch)
        return document(await self._store.inventory.record(name, _seq(request)))

    async def _verified(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(self._progress())

    async def _begin_verify(self, request: web.Request) -> web.Response:
        deep = query_of(request, VerifyQuery).deep
        if not self._asked.is_set():
            self._verify = Verify(self._store.slices, deep=deep)
            self._report = self._error = None
            self._asked.set()
        return document(self._progress(), 202)

    def _progress(self) -> Progress:
        verify, error = self._verify, self._error
        return Progress(
            running=self._asked.is_set(),
            deep=verify is not None and verify.deep,
            counted=verify.counted if verify else 0,
            total=verify.total if verify else 0,
            report=self._report,
            failure=Failure(str(error), error.hint) if error else None,
        )

    async def _drop(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        order = await order_of(request, DropOrder, '{"first": 1, "last": 9, "reason": "why"}')
        name = self._name(request, order.epoch)
        span = Range(order.first, order.first if order.last is None else order.last)
        dropped = await self._store.decisions.drop(name, span)
        if dropped.dropped:
            what, upto = counted(dropped.dropped, "record"), _upto(span, dropped.next)
            word = "%s: an operator gave up %s of #%d to #%d: %r"
            log.warning(word, name[1], what, *upto, order.reason)
            self._wake(name[1].removesuffix(raw_stream("")))
        return document(dropped)

    async def _retry(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        order = await order_of(request, RetryOrder, '{"seqs": [7, 9]} or {} for all')
        name = self._name(request, order.epoch)
        retried = await self._store.decisions.retry(name, order.seqs, order.first)
        heard = self._wake(name[1].removesuffix(raw_stream("")))
        return document(Retrying(*msgspec.structs.astuple(retried), listening=heard))

    def _name(self, request: web.Request, epoch: str | None) -> Name:
        return epoch or self._store.epoch, request.match_info["stream"]


def _seq(request: web.Request) -> int:
    text = request.match_info["seq"]
    digits = text.isascii() and text.isdecimal() and len(text) < SEQ_DIGITS_MAX
    if not digits or not 1 <= int(text) <= SEQ_MAX:
        raise RequestError(
            f"the seq in the path: expected a whole number from 1 to {SEQ_MAX}, found {text!r}",
            "give such a number",
        )
    return int(text)


def _upto(span: Range, following: int | None) -> tuple[int, int]:
    return span.first, span.last if following is None else following - 1
