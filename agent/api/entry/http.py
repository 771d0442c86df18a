"""aiohttp's side of a connection, but for what it cannot read: that is refused in our form.

Its own refusals are logged with a traceback and with what the client sent. Whoever wants to could
fill a log with that, and see his words in it.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, LineTooLong

from agent.api.entry.refusals import SERVER, refusal

REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (LineTooLong, "a line of its header is too long"),
    (ContentEncodingError, "its body has a Content-Encoding that is not known here"),
)


async def unasked(_: web.Request) -> None:
    """In place of aiohttp's, which asks for any body of any size before anybody was let in; where
    one is read, it is asked for (body.py)."""


class Handler(web.RequestHandler):
    """Of one connection."""

    __slots__ = ("_unreadable",)

    def __init__(self, *args: Any, unreadable: Callable[[str], None], **more: Any) -> None:
        """`unreadable` is told why a request could not be read; the rest is aiohttp's."""
        super().__init__(*args, **more)
        self._unreadable = unreadable

    @property
    def idle(self) -> bool:
        """Whether its last answer is out, and it waits for a request."""
        waits = self._waiter is not None and not self._waiter.done()
        return waits and not self._messages and self._current_request is None

    def hurry(self) -> None:
        """The rest of the request is not waited for, once its answer is out: aiohttp reads on for a
        while, so that whoever still sends will see the answer."""
        self._lingering_time = 0.0

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The last answer on this connection."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        why = next((text for kind, text in REASONS if isinstance(exc, kind)), "it is no HTTP/1.1")
        self._unreadable(why)
        answer = refusal(status, f"the request cannot be read: {why}", "see the OpenAPI document")
        answer.headers["Server"] = SERVER
        answer.force_close()
        return answer
