"""One door as a record: where it is, who may use it, what it takes and what it gives.

All else follows from it: what aiohttp serves, who is let in (entry/guard.py), the OpenAPI document
(openapi.py), the labels of the metrics.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from aiohttp import web

from agent.forms import Scope

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PLACE = re.compile(r"\{(\w+)\}")


class Media(NamedTuple):
    """A body that is not JSON, by its media type; `form` is what is known of its text.

    Of server-sent events, `events` are the forms of what they carry, by their names.
    """

    kind: str
    form: Any = None
    events: Mapping[str, Any] = MappingProxyType({})


# A body: JSON of a type that msgspec knows, something else, or one of several forms.
Form = Any
BYTES = Media("application/octet-stream")


class Route(NamedTuple):
    """A door.

    `path` is written as OpenAPI has it, `/api/v1/jobs/{job}`; a place in it takes anything but a
    slash, also nothing. A caller must hold one of `scopes`; none: nobody is asked who he is.
    `query` is a Struct of what may stand behind the `?`, `body` and `answers` (by status) say their
    forms; a tuple of forms: one of them. An error has one form everywhere; `refuses` are those of
    its statuses that are part of what the door means, beyond what follows from the above. `takes`
    are headers that it looks at, `tells` those of its answers, by status (openapi.py knows them).
    `about` says what its summary does not. A WebSocket answers 101, whose form is that of the texts
    that it sends.
    `unpacks`: its body may come compressed. One without `answers` is there to say what Holdfast has
    not, and stands in no document.
    """

    method: str
    path: str
    handler: Handler
    scopes: tuple[Scope, ...]
    summary: str
    answers: Mapping[int, Form]
    query: type[Any] | None = None
    body: Form = None
    unpacks: bool = False
    refuses: tuple[int, ...] = ()
    takes: tuple[str, ...] = ()
    tells: Mapping[int, tuple[str, ...]] = MappingProxyType({})
    about: str = ""

    def pattern(self, paths: Iterable[str]) -> str:
        """The path, as aiohttp has it.

        A word that another of all `paths` has in a place of this one is not taken for what stands
        there: the door is the other one, also for a method that it does not have.
        """
        own = self.path.split("/")
        others = [other for path in paths if len(other := path.split("/")) == len(own)]
        for at, part in enumerate(own):
            if name := PLACE.fullmatch(part):
                words = {one[at] for one in others if _beside(one, self.path.split("/"), at)}
                but = f"(?!(?:{'|'.join(map(re.escape, sorted(words)))})(?:/|$))" if words else ""
                own[at] = f"{{{name[1]}:{but}[^/]*}}"
        return "/".join(own)


def _beside(other: Sequence[str], own: Sequence[str], at: int) -> bool:
    """Whether it has a word at this place, and else the same words and places."""
    theirs, ours = (["{}" if PLACE.fullmatch(part) else part for part in x] for x in (other, own))
    theirs[at], word = ours[at], theirs[at]
    return word != "{}" and theirs == ours


def get(
    path: str,
    handler: Handler,
    summary: str,
    answer: Form,
    *,
    scopes: tuple[Scope, ...] = ("read",),
    query: type[Any] | None = None,
    refuses: tuple[int, ...] = (),
) -> Route:
    """A door that only tells; by default to who may read."""
    return Route("GET", path, handler, scopes, summary, {200: answer}, query, refuses=refuses)


def post(
    path: str,
    handler: Handler,
    summary: str,
    answer: Form,
    *,
    scopes: tuple[Scope, ...] = ("operate",),
    status: int = 200,
    query: type[Any] | None = None,
    body: Form = None,
    refuses: tuple[int, ...] = (),
) -> Route:
    """A door that does something; by default for who may operate."""
    answers = {status: answer}
    return Route("POST", path, handler, scopes, summary, answers, query, body, refuses=refuses)
