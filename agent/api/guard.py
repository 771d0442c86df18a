"""Who may come in: checks before every route.

Until there are tokens, TCP serves what only asks; what changes state answers on the unix socket
alone, whose file mode says who may. `Host` and `Origin` are checked, so that a page in a browser on
this machine cannot reach the agent under a name of its own (DNS rebinding).
"""

import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from agent.api.doors import served
from agent.errors import HoldfastError, NotNow, NotThere, RequestError, StoreError

log = logging.getLogger("api")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
READS = frozenset({"GET", "HEAD"})
INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")  # it leaves nothing behind
PORT_MAX = 65_535
REFUSED: dict[type[RequestError], int] = {NotThere: 404, NotNow: 409}
# A host name or an address, and a port; nothing else that a URL may hold, as a user's name.
HOST = re.compile(r"(?:([A-Za-z0-9._-]+)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?")


class Guard:
    """The first middleware; it also counts the requests that are under way."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self.active_requests = 0
        self._hosts = LOCAL_HOSTS | {host.lower() for host in hosts}

    def answers_to(self, host: str) -> bool:
        """Whether this agent is called so, in a `Host` header."""
        return _named(host) in self._hosts

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse, or count and hand on."""
        self.active_requests += 1
        try:
            with served(request):
                return self._refusal(request) or await _answer(request, handler)
        finally:
            self.active_requests -= 1
            if "Content-Encoding" in request.headers:
                # aiohttp would read what is left of the body, to be polite: ten seconds of nothing
                # but unpacking, if somebody means it. A time that is over is what ends that.
                request.content.set_exception(TimeoutError())

    def _refusal(self, request: web.Request) -> web.Response | None:
        host = request.headers.get("Host", "")
        if not self.answers_to(host):
            return refusal(
                421, f"this agent does not answer to the name {host!r}", "add it to api.hosts"
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != host:
            return refusal(
                403, f"pages of {origin!r} may not talk to this agent", "use its own page"
            )
        asks = request.method in READS or INFER.fullmatch(request.path)
        if not asks and not _by_socket(request):
            return refusal(
                403,
                f"{request.method} is not served over TCP",
                "use the unix socket (api.socket), as the holdfast command does",
            )
        return None


def refusal(status: int, error: str, hint: str) -> web.Response:
    """The form of every error answer."""
    return web.json_response({"error": error, "hint": hint}, status=status)


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's answer, or what became of it in the form of all errors."""
    try:
        return await handler(request)
    except StoreError as error:  # the agent runs, and goes on when the store does
        return refusal(503, str(error), error.hint)
    except RequestError as error:
        return refusal(REFUSED.get(type(error), 400), str(error), error.hint)
    except HoldfastError as error:
        return refusal(500, str(error), error.hint)
    except web.RequestPayloadError as error:
        said = " ".join(str(error).split())
        return refusal(400, f"the body: {said}", "send it whole, and encoded as its header says")
    except web.HTTPException as error:
        answer = refusal(error.status, error.reason, "see /api/v1/health and the README")
        answer.headers.update({k: v for k, v in error.headers.items() if k == "Allow"})
        return answer
    except Exception:  # the border: what one request meets must not end the others
        log.exception("%s %s failed", request.method, request.path_qs)
        return refusal(
            500, "the agent met a fault of its own", "look at its log, and report what it says"
        )


def _named(host: str) -> str | None:
    """The name or address in a `Host` header, in lower case; None if it is not in its form."""
    match = HOST.fullmatch(host)
    if match is None or int(match[3] or 0) > PORT_MAX:
        return None
    return (match[1] or match[2]).lower()


def _by_socket(request: web.Request) -> bool:
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport else None
    return sock is not None and sock.family == socket.AF_UNIX
