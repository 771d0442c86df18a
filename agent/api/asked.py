"""What a request asks: its query and its body, read strictly."""

from typing import TypeVar

import msgspec
from aiohttp import web

from agent.errors import RequestError

T = TypeVar("T")
FLAGS = {"true": True, "false": False}


def query_of(request: web.Request, *known: str) -> dict[str, str]:
    """What stands behind the `?`. Raises RequestError for what is not known, or stands twice."""
    for key in request.query:
        if key not in known:
            raise RequestError(
                f"{request.path}: unknown parameter {key!r}",
                f"known here: {', '.join(known) or 'none'}",
            )
        if len(request.query.getall(key)) > 1:
            raise RequestError(f"{request.path}: {key} stands there twice", "name it once")
    return dict(request.query)


def number_of(what: str, text: str, most: int) -> int:
    """A whole number from 1 to `most`. Raises RequestError."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and 1 <= int(text) <= most):
        raise RequestError(
            f"{what}: expected a whole number from 1 to {most}, found {text!r}",
            "give such a number",
        )
    return int(text)


def flag_of(what: str, text: str) -> bool:
    """True or false. Raises RequestError."""
    if text not in FLAGS:
        raise RequestError(f"{what}: expected true or false, found {text!r}", f"{what}=true")
    return FLAGS[text]


async def order_of(request: web.Request, kind: type[T], form: str) -> T:
    """The body of a request, by default empty. Raises RequestError with what is wrong in it."""
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body of {request.path}: {error}", f"send {form}") from error
