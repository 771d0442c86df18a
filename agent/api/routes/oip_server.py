"""The doors of the Open Inference Protocol about the server: what it is, whether it lives.

What Triton has beside the protocol and Holdfast has not is refused by its name, so that a client
learns why: shared memory, and settings of traces and logs.
"""

from collections.abc import Callable
from typing import NoReturn, TypedDict

from aiohttp import web

from agent import VERSION
from agent.api.form.answers import document
from agent.api.form.route import Handler, Route, get
from agent.errors import NotThere

NAME = "holdfast"
EXTENSIONS = [  # by Triton's names
    *("binary_tensor_data", "model_configuration", "model_repository", "parameters"),
    *("schedule_policy", "sequence", "statistics"),
]
ABSENT = {  # path -> the methods, and what it is of
    **{
        f"/v2/{kind}sharedmemory{rest}": ((method,), "shared memory")
        for kind in ("system", "cuda")
        for rest, method in (
            ("/status", "GET"),
            ("/region/{name}/status", "GET"),
            ("/region/{name}/register", "POST"),
            ("/region/{name}/unregister", "POST"),
            ("/unregister", "POST"),
        )
    },
    "/v2/trace/setting": (("GET", "POST"), "trace settings"),
    "/v2/models/{model}/trace/setting": (("GET", "POST"), "trace settings"),
    "/v2/logging": (("GET", "POST"), "log settings"),
}
HINTS = {
    "shared memory": "send tensors in the body: set_data_from_numpy, not set_shared_memory",
    "trace settings": "holdfast domains trace shows where the last calls spent their time",
    "log settings": "holdfast logs; the level is a setting of the agent's own",
}


class ServerMetadata(TypedDict):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(TypedDict):
    """It answers."""

    live: bool


class ServerReady(TypedDict):
    """Whether every domain takes calls."""

    ready: bool


class OipServerDoors:
    """The routes."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        """`ready` says whether every domain takes calls."""
        self._is_ready = ready

    def routes(self) -> list[Route]:
        """What is served; those of health without asking who it is."""
        ready = get(
            "/v2/health/ready",
            self._ready,
            "Whether every domain takes calls.",
            ServerReady,
            scopes=(),
        )
        return [
            get(
                *("/v2", self._metadata, "What the server is.", ServerMetadata),
                scopes=("read", "infer"),
            ),
            get(
                "/v2/health/live", self._live, "Whether the server answers.", ServerLive, scopes=()
            ),
            ready._replace(answers={200: ServerReady, 503: ServerReady}),
            *_absent_routes(),
        ]

    async def _metadata(self, _: web.Request) -> web.Response:
        return document(ServerMetadata(name=NAME, version=VERSION, extensions=EXTENSIONS))

    async def _live(self, _: web.Request) -> web.Response:
        return document(ServerLive(live=True))

    async def _ready(self, _: web.Request) -> web.Response:
        ready = self._is_ready()
        return document(ServerReady(ready=ready), 200 if ready else 503)


def _absent_routes() -> list[Route]:
    return [
        Route(method, path, _absent(what), ("infer",), f"Not here: no {what}.", {})
        for path, (methods, what) in ABSENT.items()
        for method in methods
    ]


def _absent(what: str) -> Handler:
    async def refuse(request: web.Request) -> NoReturn:
        raise NotThere(f"{request.path}: Holdfast has no {what}", HINTS[what])

    return refuse
