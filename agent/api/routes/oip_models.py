"""The doors of the Open Inference Protocol about each model: what it is, whether it takes calls,
what became of them.
"""

from typing import NamedTuple, Protocol, TypedDict

from aiohttp import web

from agent.api.form.answers import document
from agent.api.form.oip_model import (
    ModelConfiguration,
    ModelMetadata,
    ModelStatistics,
    configuration,
    metadata,
    statistics,
)
from agent.api.form.route import Handler, Route, get
from agent.api.routes.inference import version_of
from agent.clock import Clock
from agent.errors import BusyError, NotThere
from agent.forms import Scope
from agent.inference.catalog import Model
from agent.inference.domains.domain import Domain
from agent.inference.domains.figures import ModelFigures

ASKERS: tuple[Scope, ...] = ("read", "infer")


class ModelReady(TypedDict):
    """A model that takes calls."""

    name: str
    ready: bool


class AllStatistics(TypedDict):
    """Of models."""

    model_stats: list[ModelStatistics]


class Domains(Protocol):
    """Where the models are."""

    def all(self) -> list[Domain]: ...  # noqa: D102
    def serving(self, model: str) -> Domain | None: ...  # noqa: D102


class Found(NamedTuple):
    """A model that is loaded, and its domain."""

    model: Model
    domain: Domain


class OipModelDoors:
    """The routes."""

    def __init__(self, domains: Domains, clock: Clock) -> None:
        self._domains = domains
        self._clock = clock

    def routes(self) -> list[Route]:
        """What is served: of the version that is loaded, whether it is named or not."""

        def both(rest: str, handler: Handler, summary: str, answer: type) -> list[Route]:
            paths = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
            one = get("", handler, summary, answer, scopes=ASKERS, refuses=(503,))
            return [one._replace(path=path + rest) for path in paths]

        every = get(
            "/v2/models/stats",
            self._all_statistics,
            "What became of the calls of all models.",
            AllStatistics,
        )
        return [
            every._replace(scopes=ASKERS),
            *both("", self._metadata, "What a model is.", ModelMetadata),
            *both("/ready", self._ready, "Whether a model takes calls.", ModelReady),
            *both(
                "/config",
                self._configuration,
                "What a model is, as Triton has it.",
                ModelConfiguration,
            ),
            *both(
                "/stats", self._statistics, "What became of the calls of a model.", AllStatistics
            ),
        ]

    async def _metadata(self, request: web.Request) -> web.Response:
        return document(metadata(self._found(request).model))

    async def _configuration(self, request: web.Request) -> web.Response:
        found = self._found(request)
        return document(configuration(found.model, found.domain.settings))

    async def _ready(self, request: web.Request) -> web.Response:
        """Raises BusyError where it takes none."""
        model, domain = self._found(request)
        name = model.manifest.name
        if not domain.ready.is_set() or domain.loaded(name) is None:
            raise _busy(domain)
        return document(ModelReady(name=name, ready=True))

    async def _statistics(self, request: web.Request) -> web.Response:
        return document(AllStatistics(model_stats=[self._of(*self._found(request))]))

    async def _all_statistics(self, _: web.Request) -> web.Response:
        found = [(one, domain) for domain in self._domains.all() for one in domain.models.values()]
        return document(AllStatistics(model_stats=[self._of(*one) for one in found]))

    def _of(self, model: Model, domain: Domain) -> ModelStatistics:
        manifest = model.manifest
        figures = domain.figures.models.get(manifest.name) or ModelFigures()
        return statistics(manifest.name, str(manifest.version), figures, self._clock)

    def _found(self, request: web.Request) -> Found:
        """The model that a request names. Raises NotThere, BusyError, RequestError."""
        name, version = request.match_info["model"], request.match_info.get("version")
        wanted = None if version is None else version_of(version)
        domain = self._domains.serving(name)
        if domain is None:
            raise NotThere(
                f"no domain has the model {name!r}",
                "name it in a domain's models, then: holdfast domains apply",
            )
        model = domain.models.get(name)
        if model is None and not domain.models:
            raise _busy(domain)
        if model is None:
            raise NotThere(f"model {name} is not loaded", f"holdfast models load {name}")
        if wanted not in (None, model.manifest.version):
            raise NotThere(
                f"model {name}: version {model.manifest.version} is loaded, not {wanted}",
                f"holdfast models load {name}/{wanted}",
            )
        return Found(model, domain)


def _busy(domain: Domain) -> BusyError:
    return BusyError(
        f"domain {domain.name} is not ready: {domain.cause or 'its process has ended'}",
        "try again later; `holdfast status` shows how it goes",
    )
