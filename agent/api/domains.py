"""The doors of the domains and their models: how they are, and an operator's orders to them."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web
from msgspec import Struct

from agent.api.answers import document
from agent.api.asked import order_of
from agent.errors import HoldfastError
from agent.inference.catalog import Model
from agent.inference.domains.domain import Domain

log = logging.getLogger("domain")


class LoadOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a load: which version; null: the newest."""

    version: int | None = None


class Domains(Protocol):
    """Who carries the orders out; agent/inference/domains/domains.py says what they raise."""

    def all(self) -> list[Domain]: ...  # noqa: D102
    def named(self, name: str) -> Domain: ...  # noqa: D102
    async def load(self, name: str, version: int | None) -> Model: ...  # noqa: D102
    async def unload(self, name: str) -> None: ...  # noqa: D102
    async def roll_back(self, name: str) -> Model: ...  # noqa: D102


View = Callable[[], Awaitable[dict[str, Any]]]


class DomainDoors:
    """The routes."""

    def __init__(
        self,
        domains: Domains,
        show_domains: View,
        show_models: View,
        apply: Callable[[], Awaitable[dict[str, str]]],
    ) -> None:
        """`apply` has the domains be as the configuration file says now; reload.py."""
        self._domains = domains
        self._show_domains = show_domains
        self._show_models = show_models
        self._reload = apply

    def routes(self) -> list[web.RouteDef]:
        """What is served."""
        return [
            web.get("/api/v1/domains", self._list_domains),
            web.post("/api/v1/domains/apply", self._apply),
            web.get("/api/v1/domains/{name:[^/]*}/trace", self._trace),
            web.post("/api/v1/domains/{name:[^/]*}/restart", self._restart),
            web.get("/api/v1/models", self._list_models),
            web.post("/api/v1/models/{name:[^/]*}/load", self._load),
            web.post("/api/v1/models/{name:[^/]*}/unload", self._unload),
            web.post("/api/v1/models/{name:[^/]*}/rollback", self._roll_back),
        ]

    async def _list_domains(self, _: web.Request) -> web.Response:
        return document(await self._show_domains())

    async def _list_models(self, _: web.Request) -> web.Response:
        return document(await self._show_models())

    async def _restart(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self._domains.named(name).restart()
        log.info("an operator ordered: restart domain %s", name)
        return document({"domain": name, "restarting": True}, 202)

    async def _apply(self, _: web.Request) -> web.Response:
        done = await self._reload()
        log.info("an operator ordered: apply the domains of the configuration: %s", done)
        return document({"done": done})

    async def _trace(self, request: web.Request) -> web.Response:
        domain = self._domains.named(request.match_info["name"])
        model = request.query.get("model")
        found = [one for one in domain.figures.traces() if model in (None, one.model)]
        return document({"domain": domain.name, "calls": [one.document() for one in found]})

    async def _load(self, request: web.Request) -> web.Response:
        order = await order_of(request, LoadOrder, '{"version": 2} or {}')
        name = request.match_info["name"]
        try:
            model = await self._domains.load(name, order.version)
        except HoldfastError as error:
            log.warning("an operator ordered: load %s: it is refused: %s", name, error)
            raise
        log.info("an operator ordered: load %s", model.label)
        return document({"model": model.label})

    async def _unload(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await self._domains.unload(name)
        log.info("an operator ordered: unload %s", name)
        return document({"unloaded": name})

    async def _roll_back(self, request: web.Request) -> web.Response:
        model = await self._domains.roll_back(request.match_info["name"])
        log.info("an operator ordered: roll back to %s", model.label)
        return document({"model": model.label})
