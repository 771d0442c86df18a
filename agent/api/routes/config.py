"""The doors of the configuration's versions: what there is. Orders are commands (`config.*`)."""

from aiohttp import web
from msgspec import Struct

from agent.api.form.answers import document
from agent.api.form.asked import NoQuery, query_of
from agent.api.form.route import Route, get
from agent.forms import Scope
from agent.versions.shown import ConfigShown, DocumentShown
from agent.versions.versions import Versions

CONFIG = "/api/v1/config"
ADMIN: tuple[Scope, ...] = ("admin",)


class ShowQuery(Struct, frozen=True):
    """Which version; by default the live one."""

    number: int | None = None


class ConfigDoors:
    """The routes. A document may be asked for by who administers alone: it says who may."""

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
        ]

    async def _show(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        return document(self._versions.shown())

    async def _document(self, request: web.Request) -> web.Response:
        query = query_of(request, ShowQuery)
        return document(await self._versions.document(query.number))
