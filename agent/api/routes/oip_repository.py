"""The doors of Triton's model repository extension: what there is, load, unload."""

import asyncio
import logging
from typing import Literal, NotRequired, Protocol, TypedDict

from aiohttp import web
from msgspec import Struct, field

from agent.api.form.answers import document
from agent.api.form.asked import order_of
from agent.api.form.route import Route, post
from agent.api.routes.inference import version_of
from agent.errors import HoldfastError, RequestError
from agent.inference.catalog import Model
from agent.inference.domains.domain import Domain

log = logging.getLogger("domain")
State = Literal["READY", "LOADING", "UNAVAILABLE"]
Plain = bool | int | float | str | None
MINE = "let its model.yaml or config.pbtxt say so, and load the version"


class IndexOrder(Struct, frozen=True):
    """Which models: all, or those that take calls."""

    ready: bool = False


class Order(Struct, frozen=True):
    """A load's or an unload's parameters; those known here stand beside the doors."""

    parameters: dict[str, Plain] = field(default_factory=dict)


class IndexEntry(TypedDict):
    """A version; `reason` says why it is not READY."""

    name: str
    version: str
    state: State
    reason: str


class Changed(TypedDict):
    """A model that was loaded or unloaded, and its version."""

    name: str
    state: State
    version: NotRequired[str]


class Domains(Protocol):
    """Who carries the orders out; agent/inference/domains/domains.py says what they raise."""

    def serving(self, model: str) -> Domain | None: ...  # noqa: D102
    async def load(self, name: str, version: int | None) -> Model: ...  # noqa: D102
    async def unload(self, name: str) -> None: ...  # noqa: D102


class Catalog(Protocol):
    """What lies on the disk; agent/inference/catalog says what they raise. Slow, for a thread."""

    def names(self) -> list[str]: ...  # noqa: D102
    def versions(self, name: str) -> list[int]: ...  # noqa: D102


class OipRepositoryDoors:
    """The routes."""

    def __init__(self, domains: Domains, catalog: Catalog) -> None:
        self._domains = domains
        self._catalog = catalog

    def routes(self) -> list[Route]:
        """What is served."""
        at = "/v2/repository/models/{model}"
        return [
            post(
                "/v2/repository/index",
                self._index,
                "Each version of a model on the disk, and what it does.",
                list[IndexEntry],
                scopes=("read", "infer"),
                body=IndexOrder,
            ),
            post(
                f"{at}/load",
                self._load,
                "Serve a model: its newest version, or the parameter `version`.",
                Changed,
                body=Order,
                refuses=(409,),
            ),
            post(
                *(f"{at}/unload", self._unload, "Serve a model no more.", Changed),
                body=Order,
                refuses=(409,),
            ),
        ]

    async def _index(self, request: web.Request) -> web.Response:
        order = await order_of(request, IndexOrder, '{"ready": true} or {}')
        entries = [
            self._entry(name, version)
            for name, versions in (await asyncio.to_thread(self._all_versions)).items()
            for version in versions
        ]
        return document([one for one in entries if not order.ready or one["state"] == "READY"])

    def _all_versions(self) -> dict[str, list[int]]:
        return {name: self._catalog.versions(name) for name in self._catalog.names()}

    def _entry(self, name: str, version: int) -> IndexEntry:
        state, reason = self._state(name, version)
        return IndexEntry(name=name, version=str(version), state=state, reason=reason)

    def _state(self, name: str, version: int) -> tuple[State, str]:
        domain = self._domains.serving(name)
        if domain is None:
            return "UNAVAILABLE", "no domain has it"
        model = domain.models.get(name)
        if model is None:
            return ("UNAVAILABLE", "unloaded") if domain.models else ("LOADING", domain.cause)
        if model.manifest.version != version:
            return "UNAVAILABLE", f"version {model.manifest.version} serves"
        if not domain.ready.is_set():
            return "LOADING", domain.cause
        return "READY", ""

    async def _load(self, request: web.Request) -> web.Response:
        order = await order_of(request, Order, '{"parameters": {"version": 2}} or {}')
        name, version = request.match_info["model"], _version(order.parameters)
        try:
            model = await self._domains.load(name, version)
        except HoldfastError as error:
            log.warning("an operator ordered: load %s: it is refused: %s", name, error)
            raise
        log.info("an operator ordered: load %s", model.label)
        return document(Changed(name=name, state="READY", version=str(model.manifest.version)))

    async def _unload(self, request: web.Request) -> web.Response:
        order = await order_of(request, Order, "{}")
        name = request.match_info["model"]
        _known(order.parameters, "unload_dependents")  # no model here depends on another
        await self._domains.unload(name)
        log.info("an operator ordered: unload %s", name)
        return document(Changed(name=name, state="UNAVAILABLE"))


def _version(parameters: dict[str, Plain]) -> int | None:
    """Which version is to be loaded; None: the newest. Raises RequestError."""
    _known(parameters, "version")
    said = parameters.get("version")
    if said is not None and type(said) not in (int, str):
        raise RequestError(f"parameters.version: {said!r} is no whole number", "send one")
    return None if said is None else version_of(str(said))


def _known(parameters: dict[str, Plain], known: str) -> None:
    """Refuse what would otherwise be passed over. Raises RequestError."""
    for name in parameters:
        if name != known:
            said = name[:80]
            hint = MINE if name == "config" else "copy the version into the model repository"
            what = "a model's files and configuration are taken from the model repository alone"
            raise RequestError(f"parameters: {said!r} is not known here: {what}", hint)
