"""The OpenAPI 3.1 document of the doors, made from their routes: what is served is what it says.

It is made when somebody asks for it, which few do: it takes memory, and some milliseconds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from agent import VERSION
from agent.api.form.places import PLACES
from agent.api.form.route import PLACE, Form, Media, Route

JSON = "application/json"
UPGRADED = 101
SCHEMA = "#/components/schemas/{name}"
REFUSAL = "#/components/responses/{name}"
ABOUT = """\
The local doors of a Holdfast device. Whoever comes by the unix socket may do everything, a program
on the device what `api.loopback_scopes` says; everybody else sends a token (`holdfast tokens`), or
the cookie of a session. Errors have one form, with what to do about it. HEAD is answered where GET
is. A parameter that is not named here is refused, but by the doors of the Open Inference Protocol
(/v2). Each answer has a header X-Request-Id: the request's own, or a new one."""
REFUSALS = {
    400: "It is not in the form that it must have.",
    401: "Nobody who is known asks.",
    403: "Whoever asks does not hold the scope, or a page of another origin asks.",
    404: "What was named is not there.",
    408: "The body did not come in time.",
    409: "It cannot be done as things stand; nothing was changed.",
    413: "The body is too large.",
    415: "The body's Content-Encoding is not taken.",
    416: "No byte of it is in that range.",
    421: "This agent does not answer to the name in the header Host.",
    429: "Too much was asked at once, or in too short a time.",
    500: "The model erred, or the agent met a fault of its own.",
    503: "Not accepted: something is full or not ready. Try again.",
    504: "There was no answer before the deadline.",
    507: "The store or its disk has no room.",
}
EVERYWHERE = {400, 403, 421, 429}  # before a door is asked
DONE = {
    101: "From here on it is a WebSocket; `x-messages` is the form of the texts that it sends.",
    201: "Made.",
    202: "Begun.",
    206: "The bytes that were asked for.",
    304: "It is still what the ETag stands for.",
    503: "The same, and it is not well.",
}
TELLS: Mapping[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
MAYBE: Mapping[int, tuple[str, ...]] = {401: ("Set-Cookie",)}  # where there was a cookie
SOMETIMES = "Inference-Header-Content-Length"  # the other headers of an answer always stand there
WHOLE, TEXT = {"type": "integer", "minimum": 0}, {"type": "string"}
HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Retry-After": ("After how many seconds to try again.", WHOLE),
    "Location": ("Where what was made is found.", TEXT),
    "Inference-Header-Content-Length": (
        "How many bytes of JSON come before the raw tensors; without it there are none of these.",
        WHOLE,
    ),
    "Prefer": ("`respond-async`: not to wait for the answer.", TEXT),
    "Preference-Applied": ("`respond-async`", TEXT),
    "ETag": ("What stands for this content.", TEXT),
    "If-None-Match": ("An ETag: no answer is wanted where it is still right.", TEXT),
    "Range": ("`bytes=`, and from where to where.", TEXT),
    "If-Range": ("An ETag: all is wanted where it is not right any more.", TEXT),
    "Content-Range": ("Which bytes these are, or how many there are.", TEXT),
    "Last-Event-ID": ("The last event that was read: those after it are told.", TEXT),
    "Set-Cookie": ("The session's, or its end.", TEXT),
    "WWW-Authenticate": ("`Bearer`", TEXT),
}


class Problem(Struct, omit_defaults=True):
    """What every error answers with."""

    error: Annotated[str, Meta(description="what happened, and where")]
    hint: Annotated[str, Meta(description="what to do about it")]
    verdict: str = ""


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document, as JSON values. Raises ValueError for two doors that would have one name."""
    routes = [route for route in routes if route.answers]
    types = _types(routes)
    schemas, components = msgspec.json.schema_components(types, ref_template=SCHEMA)
    writer = _Writer(dict(zip(map(id, types), schemas, strict=True)), components)
    names = Counter(map(_operation_id, routes))
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"several doors are called {', '.join(twice)}")
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = writer.operation(route)
    of_queries = {writer.name(route.query) for route in routes if route.query}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Holdfast", "version": VERSION, "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": {name: it for name, it in components.items() if name not in of_queries},
            "responses": {
                **{_refused(status): writer.refusal(status) for status in REFUSALS},
                "Refused": writer.refusal(0),
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "holdfast_session"},
            },
        },
    }


class _Writer:
    """Writes operations; `known` are the schemas of types by their identity."""

    def __init__(self, known: dict[int, Any], components: dict[str, Any]) -> None:
        self._known = known
        self._components = components

    def operation(self, route: Route) -> dict[str, Any]:
        """One door."""
        answers = {
            str(status): self._answer(form, status, route.tells.get(status, ()))
            for status, form in route.answers.items()
        }
        refusals = {
            str(status): {"$ref": REFUSAL.format(name=_refused(status))}
            for status in sorted(_refusals(route))
            if status not in route.answers
        }
        found: dict[str, Any] = {
            "summary": route.summary,
            "operationId": _operation_id(route),
            "tags": [_words(route)[0]],
            "security": _allowed(route.scopes),
            "responses": {
                **answers,
                **refusals,
                "default": {"$ref": REFUSAL.format(name="Refused")},
            },
        }
        if said := " ".join(filter(None, (route.about, self._of_query(route)))):
            found["description"] = said
        takes = ({"in": "header", **_header(name), "name": name} for name in route.takes)
        if parameters := [*_places(route), *self._query(route), *takes]:
            found["parameters"] = parameters
        if route.body is not None:
            content = self._content(route.body)
            found["requestBody"] = {"required": self._needed(route.body), "content": content}
        return found

    def refusal(self, status: int) -> dict[str, Any]:
        """How an error answers; 0: any."""
        meaning = REFUSALS.get(status, "Refused, or failed.")
        found = self._described(meaning, Problem, TELLS.get(status, ()))
        for name in MAYBE.get(status, ()):
            found["headers"][name] = {**_header(name), "required": False}
        return found

    def name(self, kind: Any) -> str:
        """What the schema of a Struct is called."""
        reference: str = self._known[id(kind)]["$ref"]
        return reference.rpartition("/")[2]

    def _answer(self, form: Form, status: int, tells: Iterable[str]) -> dict[str, Any]:
        meaning = DONE.get(status, "Done.")
        if status == UPGRADED:
            spoken = {"x-messages": self._known[id(form)]} if form is not None else {}
            return {**self._described(meaning, None, tells), **spoken}
        return self._described(meaning, form, tells)

    def _described(self, meaning: str, form: Form, tells: Iterable[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"description": meaning}
        always = {name: {"required": name != SOMETIMES} for name in tells}
        if headers := {name: {**_header(name), **more} for name, more in always.items()}:
            found["headers"] = headers
        if form is not None:
            found["content"] = self._content(form)
        return found

    def _content(self, form: Form) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one in _each(form):
            if isinstance(one, Media) and one.events:
                found[one.kind] = {"schema": self._events(one.events)}
            elif isinstance(one, Media):
                found[one.kind] = {"schema": self._known[id(one.form)]} if one.form else {}
            else:
                found[JSON] = {"schema": self._known[id(one)]}
        return found

    def _events(self, events: Mapping[str, Any]) -> dict[str, Any]:
        """One event, as readers of an event stream have it: its document is text."""
        told = {**events, "trouble": Problem}
        return {
            "description": "One event; `trouble` says why there is no other, or not now.",
            "oneOf": [self._event(name, self._known[id(form)]) for name, form in told.items()],
        }

    def _event(self, name: str, form: Any) -> dict[str, Any]:
        text = {"type": "string", "contentMediaType": JSON, "contentSchema": form}
        told = {"event": {"const": name}, "id": TEXT, "retry": WHOLE, "data": text}
        return {"type": "object", "required": ["event", "data"], "properties": told}

    def _of_query(self, route: Route) -> str:
        if route.query is None:
            return ""
        said = self._components[self.name(route.query)].get("description", "")
        return said and f"The query: {said[0].lower()}{' '.join(said[1:].split())}"

    def _needed(self, body: Form) -> bool:
        """Whether a body must be there: not where an empty one says all by default."""
        for one in _each(body):
            schema = {} if isinstance(one, Media) else self._known[id(one)]
            if "$ref" in schema and not self._components[self.name(one)].get("required"):
                return False
        return True

    def _query(self, route: Route) -> Iterable[dict[str, Any]]:
        if route.query is None:
            return
        schema = self._components[self.name(route.query)]
        for name, form in schema["properties"].items():
            required = name in schema.get("required", [])
            yield {"name": name, "in": "query", "required": required, "schema": _given(form)}


def _types(routes: Iterable[Route]) -> list[Any]:
    """All that msgspec is to describe, once each."""
    found: dict[int, Any] = {id(Problem): Problem}
    for route in routes:
        for form in (route.query, route.body, *route.answers.values()):
            for one in _each(form):
                kinds = (one.form, *one.events.values()) if isinstance(one, Media) else (one,)
                found |= {id(kind): kind for kind in kinds if kind is not None}
    return list(found.values())


def _each(form: Form) -> tuple[Any, ...]:
    if form is None:
        return ()
    return form if isinstance(form, tuple) and not isinstance(form, Media) else (form,)


def _refusals(route: Route) -> set[int]:
    """What a door refuses, by what it takes and by what it says itself."""
    found = {*EVERYWHERE, *route.refuses}
    found |= {401} if route.scopes else set()
    found |= {408, 413, 415} if route.body is not None else set()
    return found | ({404} if PLACE.search(route.path) else set())


def _refused(status: int) -> str:
    return f"Refused{status}"


def _given(form: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter that is there: null is said by leaving it out."""
    kept = {key: value for key, value in form.items() if (key, value) != ("default", None)}
    kinds = [one for one in kept.pop("anyOf", []) if one != {"type": "null"}]
    if len(kinds) > 1:
        kept["anyOf"] = kinds
    elif kinds:
        kept |= kinds[0]
    if None in kept.get("enum", ()):
        kept["enum"] = [value for value in kept["enum"] if value is not None]
    return kept


def _places(route: Route) -> Iterable[dict[str, Any]]:
    for name in PLACE.findall(route.path):
        schema = msgspec.json.schema(PLACES[name]) if name in PLACES else {"type": "string"}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _header(name: str) -> dict[str, Any]:
    meaning, schema = HEADERS[name]
    return {"description": meaning, "schema": schema}


def _allowed(scopes: Iterable[str]) -> list[dict[str, list[str]]]:
    return [{means: [scope]} for scope in scopes for means in ("token", "session")]


def _operation_id(route: Route) -> str:
    return "_".join([route.method.lower(), *_words(route)])


def _words(route: Route) -> list[str]:
    words = [part.strip("{}") for part in route.path.split("/")]
    return [word for word in words if word not in ("", "api", "v1")] or ["page"]
