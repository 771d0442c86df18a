"""The doors of the domains and their models: how they are, and an operator's orders to them."""

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web
from msgspec import Struct

from agent.api.form.answers import document
from agent.api.form.asked import order_of, query_of
from agent.api.form.route import Route, get, post
from agent.errors import HoldfastError
from agent.inference.catalog import Model
from agent.inference.domains.domain import Domain
from agent.inference.shown import DomainShown, ModelShown, TraceShown

DomainsShown = dict[str, DomainShown]
ModelsShown = dict[str, ModelShown]
log = logging.getLogger("domain")


class LoadOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a load: which version; null: the newest."""

    version: int | None = None


class TraceQuery(Struct, frozen=True):
    """Only calls to this model."""

    model: str | None = None


class Domains(Protocol):
    """Who carries the orders out; agent/inference/domains/domains.py says what they raise."""

    def all(self) -> list[Domain]: ...  # noqa: D102
    def named(self, name: str) -> Domain: ...  # noqa: D102
    async def load(self, name: str, version: int | None) -> Model: ...  # noqa: D102
    async def unload(self, name: str) -> None: ...  # noqa: D102
    async def roll_back(self, name: str) -> Model: ...  # noqa: D102


class Restarting(Struct, frozen=True):
    """The domain whose processes are started anew."""

    domain: str
    restarting: bool = True


class Applied(Struct, frozen=True):
    """What was done to which domain; to one that was as it should be, nothing."""

    done: dict[str, str]


class Traces(Struct, frozen=True):
    """The last calls of a domain, the newest first."""

    domain: str
    calls: list[TraceShown]


class Serving(Struct, frozen=True):
    """The version that serves now: name/version@digest."""

    model: str


class Unloaded(Struct, frozen=True):
    """The name of the model that is served no more."""

    unloaded: str


class DomainDoors:
    """The routes."""

    def __init__(
        self,
        domains: Domains,
        show_domains: Callable[[], Awaitable[DomainsShown]],
        show_models: Callable[[], Awaitable[ModelsShown]],
        apply: Callable[[], Awaitable[dict[str, str]]],
    ) -> None:
        """`apply` has the domains be as the configuration file says now; versions.py."""
        self._domains = domains
        self._show_domains = show_domains
        self._show_models = show_models
        self._reload = apply

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            get(
                "/api/v1/domains",
                self._list_domains,
                "Each domain, by name.",
                DomainsShown,
            ),
            post(
                "/api/v1/domains/apply",
                self._apply,
                "Have the domains be as the configuration file says now.",
                Applied,
                refuses=(409,),
            ),
            get(
                "/api/v1/domains/{domain}/trace",
                self._trace,
                "Where the last calls of a domain spent their time.",
                Traces,
                query=TraceQuery,
            ),
            post(
                "/api/v1/domains/{domain}/restart",
                self._restart,
                "Start the processes of a domain anew.",
                Restarting,
                status=202,
            ),
            get("/api/v1/models", self._list_models, "Each model, by name.", ModelsShown),
            post(
                "/api/v1/models/{model}/load",
                self._load,
                "Serve a version of a model, the newest by default.",
                Serving,
                body=LoadOrder,
                refuses=(409,),
            ),
            post(
                "/api/v1/models/{model}/unload",
                self._unload,
                "Serve a model no more.",
                Unloaded,
                refuses=(409,),
            ),
            post(
                "/api/v1/models/{model}/rollback",
                self._roll_back,
                "Serve the version of a model that served before.",
                Serving,
                refuses=(409,),
            ),
        ]

    async def _list_domains(self, _: web.Request) -> web.Response:
        return document(await self._show_domains())

    async def _list_models(self, _: web.Request) -> web.Response:
        return document(await self._show_models())

    async def _restart(self, request: web.Request) -> web.Response:
        name = request.match_info["domain"]
        self._domains.named(name).restart()
        log.info("an operator ordered: restart domain %s", name)
        return document(Restarting(name), 202)

    async def _apply(self, _: web.Request) -> web.Response:
        done = await self._reload()
        log.info("an operator ordered: apply the domains of the configuration: %s", done)
        return document(Applied(done))

    async def _trace(self, request: web.Request) -> web.Response:
        domain = self._domains.named(request.match_info["domain"])
        model = query_of(request, TraceQuery).model
        found = [one for one in domain.figures.traces() if model in (None, one.model)]
        return document(Traces(domain.name, [one.document() for one in found]))

    async def _load(self, request: web.Request) -> web.Response:
        order = await order_of(request, LoadOrder, '{"version": 2} or {}')
        name = request.match_info["model"]
        try:
            model = await self._domains.load(name, order.version)
        except HoldfastError as error:
            log.warning("an operator ordered: load %s: it is refused: %s", name, error)
            raise
        log.info("an operator ordered: load %s", model.label)
        return document(Serving(model.label))

    async def _unload(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        await self._domains.unload(name)
        log.info("an operator ordered: unload %s", name)
        return document(Unloaded(name))

    async def _roll_back(self, request: web.Request) -> web.Response:
        model = await self._domains.roll_back(request.match_info["model"])
        log.info("an operator ordered: roll back to %s", model.label)
        return document(Serving(model.label))
