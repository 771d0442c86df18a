"""The status page at `/`: a few files that hold no data, for whoever asks.

What the page shows it asks of the other doors, as whoever looks at it may.
"""

import hashlib
from collections.abc import Mapping
from importlib.resources import files

from aiohttp import ETag, web

from agent.api.form.asked import NoQuery, query_of
from agent.api.form.route import Media, Route

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES: Mapping[str, str] = {  # by path; no other file is ever read
    "/": "index.html",
    **{
        f"/page/{name}": name
        for name in (
            "style.css",
            "accelerators.js",
            "commands.js",
            "conditions.js",
            "dom.js",
            "domains.js",
            "ledger.js",
            "link.js",
            "listen.js",
            "live.js",
            "page.js",
            "session.js",
            "status.js",
            "store.js",
            "trial.js",
            "units.js",
            "watchdog.js",
            "words.js",
        )
    },
}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
)
HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for each time: an update is seen at once
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}


class PageDoors:
    """The routes, a file each."""

    def routes(self) -> list[Route]:
        """What is served."""
        return [_File(name).route(path) for path, name in FILES.items()]


class _File:
    """A file of the page, read once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._content = files("agent.api.page").joinpath(name).read_bytes()
        self._tag = hashlib.sha256(self._content).hexdigest()[:16]
        self._kind = KINDS[name[name.rindex(".") :]]

    def route(self, path: str) -> Route:
        """Where it is; nobody is asked who he is."""
        answers = {200: Media(self._kind), 304: None}
        return Route(
            *("GET", path, self._answer, (), f"The status page: {self._name}.", answers),
            takes=("If-None-Match",),
            tells={200: ("ETag",), 304: ("ETag",)},
        )

    async def _answer(self, request: web.Request) -> web.Response:
        query_of(request, NoQuery)
        known = request.if_none_match or ()
        if any(one.value in ("*", self._tag) for one in known):
            answer = web.Response(status=304, headers=HEADERS)
        else:
            answer = web.Response(
                body=self._content, headers=HEADERS, content_type=self._kind, charset="utf-8"
            )
            answer.enable_compression()
        answer.etag = ETag(self._tag, is_weak=True)  # for whatever encoding
        return answer
