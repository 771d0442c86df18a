"""How the doors answer: with a document, or with what is long and sent as it is made."""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from agent.errors import HoldfastError

log = logging.getLogger("api")


def document(content: Any, status: int = 200) -> web.Response:
    """JSON."""
    return web.Response(
        body=msgspec.json.encode(content), status=status, content_type="application/json"
    )


async def streamed(
    request: web.Request,
    body: AsyncGenerator[bytes, None],
    headers: Mapping[str, str],
    broken: Callable[[HoldfastError], None] = lambda _: None,
) -> web.StreamResponse:
    """A long answer. One that fails on its way ends without its end; `broken` is told why."""
    first = await anext(body)  # what is refused is refused before the answer begins
    answer = web.StreamResponse(headers=headers)
    answer.enable_chunked_encoding()
    await answer.prepare(request)
    try:
        await answer.write(first)
        async for piece in body:
            await answer.write(piece)
        await answer.write_eof()
    except HoldfastError as error:
        log.warning("%s was broken off: %s", request.path, error)
        broken(error)
        if request.transport:
            request.transport.abort()
    except ConnectionError:  # whoever asked is gone; nothing was changed
        log.info("%s was not taken to its end", request.path)
    finally:
        await body.aclose()
    return answer
