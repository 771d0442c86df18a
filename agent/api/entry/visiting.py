"""From a request to the connection that it came by; of one in a test there may be none."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from aiohttp import web

from agent.api.entry.doors import Visitor


def _visitor(request: web.Request) -> Visitor | None:
    """The connection that a request came by, while it is there."""
    found = request.transport.get_protocol() if request.transport else None
    return found if isinstance(found, Visitor) else None


def served(request: web.Request) -> AbstractContextManager[None]:
    """The time in which a request is worked on, for the connection it came by."""
    visitor = _visitor(request)
    return visitor.served() if visitor else nullcontext()


def receiving(
    request: web.Request, whole_s: float | None, slow: Callable[[], None]
) -> AbstractContextManager[None]:
    """The time in which a request's body comes, for the connection it comes by."""
    visitor = _visitor(request)
    return visitor.receiving(whole_s, slow) if visitor else nullcontext()


def abandonable(request: web.Request) -> AbstractContextManager[None]:
    """What of a request's work ends when its client leaves."""
    visitor = _visitor(request)
    return visitor.abandonable() if visitor else nullcontext()


def may_stay(request: web.Request) -> bool:
    """Whether a connection may be held for as long as its client likes.

    The last places, one in STAYING, are for those who come and go.
    """
    visitor = _visitor(request)
    return visitor is None or visitor.others_find_room
