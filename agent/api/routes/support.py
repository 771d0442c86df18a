"""The door of the support archive: what holds now, for a technician beside the device."""

from collections.abc import AsyncGenerator, Awaitable, Callable

from aiohttp import web

from agent.api.form.answers import streamed
from agent.api.form.route import Media, Route, get

ARCHIVE = Media("application/gzip")
STEP_BYTES = 64 << 10


class SupportDoors:
    """The route."""

    def __init__(self, archive: Callable[[], Awaitable[bytes]]) -> None:
        self._archive = archive

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            get(
                "/api/v1/support",
                self._get,
                "State, configuration, history and log as an archive, secrets masked.",
                ARCHIVE,
                scopes=("admin",),
            )
        ]

    async def _get(self, request: web.Request) -> web.StreamResponse:
        return await streamed(request, self._pieces(), {"Content-Type": ARCHIVE.kind})

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        content = await self._archive()
        for start in range(0, len(content), STEP_BYTES):
            yield content[start : start + STEP_BYTES]
