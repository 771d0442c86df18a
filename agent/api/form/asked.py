"""What a request asks: its query and its body, read strictly."""

from typing import TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from agent.api.entry.body import Bound, body_of
from agent.api.entry.coding import coding_of
from agent.api.form.route import Handler, Route
from agent.errors import RequestError
from agent.inference import oip, oip_asked

T = TypeVar("T")
SHOWN_CHARS_MAX = 80
ORDER_BYTES_MAX = 64 << 10  # the largest names a thousand records
ORDER = Bound(ORDER_BYTES_MAX)
TENSORS = Bound(oip.BODY_BYTES_MAX)
JSON = Bound(oip_asked.JSON_BYTES_MAX, oip_asked.SEND_RAW)
S = TypeVar("S", bound=Struct)


class NoQuery(Struct, frozen=True):
    """Of a door that takes none."""


def strict(route: Route) -> Handler:
    """The handler of a door; of one that takes no query, none is passed over in silence.

    But for those of the Open Inference Protocol, whose clients may add to it what they like.
    """
    if route.query is not None or route.path.startswith("/v2"):
        return route.handler

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.query_string:
            query_of(request, NoQuery)
        return await route.handler(request)

    return handler


def query_of(request: web.Request, kind: type[S]) -> S:
    """What stands behind the `?`. Raises RequestError for what is unknown, or stands twice."""
    known = msgspec.structs.fields(kind)
    names = {one.encode_name for one in known}
    for key in request.query:
        if key not in names:
            raise RequestError(
                f"{request.path}: unknown parameter {key!r}",
                f"known here: {', '.join(sorted(names)) or 'none'}",
            )
        if len(request.query.getall(key)) > 1:
            raise RequestError(f"{request.path}: {key} stands there twice", "name it once")
    try:
        query = msgspec.convert(dict(request.query), kind, strict=False)
    except msgspec.ValidationError as error:
        what, _, wrong = str(error).rstrip("`").partition(" - at `$.")
        found = request.query.get(wrong, "")[:SHOWN_CHARS_MAX]
        raise RequestError(
            f"{wrong}: {what[0].lower()}{what[1:]}, found {found!r}", _hint(kind, wrong)
        ) from error
    for one in known:
        if one.encode_name in request.query and getattr(query, one.name) is None:  # it said `null`
            raise RequestError(f"{one.encode_name}: is null", "leave it out")
    return query


def _hint(kind: type[Struct], name: str) -> str:
    """What a parameter may be."""
    definitions = msgspec.json.schema(kind)["$defs"].values()
    form = next(one["properties"][name] for one in definitions if name in one.get("properties", {}))
    known = [value for one in form.get("anyOf", [form]) for value in one.get("enum", [])]
    if known:
        return f"known: {', '.join(map(str, known))}"
    return "see what /api/v1/openapi.json says of it"


async def order_of(request: web.Request, kind: type[T], form: str, bound: Bound = ORDER) -> T:
    """The body of a request, by default empty. Raises RequestError with what is wrong in it."""
    body = await body_of(request, bound)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body of {request.path}: {error}", f"send {form}") from error


def bound_of(request: web.Request) -> Bound:
    """Of a body that asks a model: raw tensors may be large, JSON may not."""
    raw = oip_asked.HEADER in request.headers or coding_of(request.headers.get("Content-Encoding"))
    return TENSORS if raw else JSON
