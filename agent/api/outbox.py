"""The outbox's doors: what is held, whether it adds up, and what an operator decides about it.

A verify takes as long as the store is large, and a door is not held for minutes: POST begins one,
GET says how far it is and, at last, what it found. One runs at a time.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta, Struct, field

from agent.api.answers import document
from agent.api.asked import flag_of, number_of, order_of, query_of
from agent.errors import StoreError
from agent.records import Range, raw_stream
from agent.store.inventory import COUNT_MAX
from agent.store.outbox import Name
from agent.store.store import Store
from agent.store.streams import SEQ_MAX
from agent.store.verify import Report, Verify
from agent.words import counted

log = logging.getLogger("outbox")
Seq = Annotated[int, Meta(ge=1, le=SEQ_MAX)]
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

    def routes(self) -> list[web.RouteDef]:
        """What is served."""
        stream = "/api/v1/outbox/{stream:[^/]*}"
        return [
            web.get("/api/v1/ledger", self._ledger),
            web.get("/api/v1/outbox", self._streams),
            # A stream's name ends with what it carries (`.raw`), so none is called so.
            web.get("/api/v1/outbox/verify", self._verified),
            web.post("/api/v1/outbox/verify", self._begin_verify),
            web.get(stream, self._page),
            web.get(f"{stream}/{{seq:[^/]*}}", self._record),
            web.post(f"{stream}/drop", self._drop),
            web.post(f"{stream}/retry", self._retry),
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
        query_of(request)
        found = await self._store.inventory.streams()
        return document({"epoch": self._store.epoch, "streams": found})

    async def _ledger(self, request: web.Request) -> web.Response:
        query_of(request)
        epochs = await self._store.inventory.ledger()
        return document({"epoch": self._store.epoch, "epochs": epochs})

    async def _page(self, request: web.Request) -> web.Response:
        query = query_of(request, "from", "count", "dead", "epoch")
        first = number_of("from", query.get("from", "1"), SEQ_MAX)
        count = number_of("count", query.get("count", "100"), COUNT_MAX)
        dead = flag_of("dead", query.get("dead", "false"))
        page = await self._store.inventory.page(self._name(request, query), first, count, dead=dead)
        return document(page)

    async def _record(self, request: web.Request) -> web.Response:
        query = query_of(request, "epoch")
        seq = number_of("the seq in the path", request.match_info["seq"], SEQ_MAX)
        return document(await self._store.inventory.record(self._name(request, query), seq))

    async def _verified(self, request: web.Request) -> web.Response:
        query_of(request)
        return document(self._progress())

    async def _begin_verify(self, request: web.Request) -> web.Response:
        deep = flag_of("deep", query_of(request, "deep").get("deep", "false"))
        if not self._asked.is_set():
            self._verify = Verify(self._store.slices, deep=deep)
            self._report = self._error = None
            self._asked.set()
        return document(self._progress(), 202)

    def _progress(self) -> dict[str, Any]:
        """How far the verify is: `running`, `counted` of about `total` rows, what it found."""
        verify, error = self._verify, self._error
        return {
            "running": self._asked.is_set(),
            "deep": verify is not None and verify.deep,
            "counted": verify.counted if verify else 0,
            "total": verify.total if verify else 0,
            "report": self._report,
            "failure": error and {"error": str(error), "hint": error.hint},
        }

    async def _drop(self, request: web.Request) -> web.Response:
        query_of(request)
        order = await order_of(request, DropOrder, '{"first": 1, "last": 9, "reason": "why"}')
        name = self._name(request, {"epoch": order.epoch or ""})
        span = Range(order.first, order.first if order.last is None else order.last)
        dropped = await self._store.decisions.drop(name, span)
        if dropped.dropped:
            what, upto = counted(dropped.dropped, "record"), _upto(span, dropped.next)
            word = "%s: an operator gave up %s of #%d to #%d: %r"
            log.warning(word, name[1], what, *upto, order.reason)
            self._wake(name[1].removesuffix(raw_stream("")))
        return document(dropped)

    async def _retry(self, request: web.Request) -> web.Response:
        query_of(request)
        order = await order_of(request, RetryOrder, '{"seqs": [7, 9]} or {} for all')
        name = self._name(request, {"epoch": order.epoch or ""})
        retried = await self._store.decisions.retry(name, order.seqs, order.first)
        heard = self._wake(name[1].removesuffix(raw_stream("")))
        return document({**msgspec.structs.asdict(retried), "listening": heard})

    def _name(self, request: web.Request, query: dict[str, str]) -> Name:
        return query.get("epoch") or self._store.epoch, request.match_info["stream"]


def _upto(span: Range, following: int | None) -> tuple[int, int]:
    return span.first, span.last if following is None else following - 1
