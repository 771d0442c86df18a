"""A repository behind HTTP or HTTPS, read by ranges, so that what was cut goes on.

What comes is judged by signatures and digests, not by who sent it: plain HTTP will do. TLS guards
against those who would only listen or disturb. While nobody knows the time, a server's certificate
counts whatever its dates say (promise 6): all else about it is checked.
"""

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from typing import Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from agent.config import Link
from agent.resolver import Resolver
from agent.threads import apart
from agent.updates.fetched import NotFetched
from agent.updates.source import Absent, Away
from agent.words import quoted

PIECE_BYTES = 256 << 10
REDIRECTS_MAX = 5
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which Python does not name
_ABSENT = {403, 404, 410}  # object stores answer 403 for what is not there
_END = 416  # the range begins where the file ends, or behind


class HttpSource:
    """One session, for one check or fetch; a server that ignores ranges serves too."""

    def __init__(
        self, url: str, link: Link, stall_s: float, knows_time: Callable[[], bool]
    ) -> None:
        """A step without a byte may take `stall_s`."""
        self.name = url
        try:
            self._url = URL(url.rstrip("/") + "/")
        except ValueError as error:
            raise NotFetched(
                "not_set_up", f"{quoted(url)}: {error}", "name http://HOST/"
            ) from error
        self._link = link
        self._stall_s = stall_s
        self._knows_time = knows_time
        self._open = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        try:
            trusted = await apart(self._context)
        except (OSError, ValueError) as error:
            if self._url.scheme == "http":  # these are for where it may be sent on to alone
                return await self._begin(True)
            raise Away(
                f"{self.name}: link.ca_file, link.cert_file or link.key_file: {error}",
                "check these files, or leave the settings out",
            ) from error
        return await self._begin(trusted)

    async def _begin(self, trusted: ssl.SSLContext | bool) -> Self:
        connector = aiohttp.TCPConnector(resolver=Resolver(), use_dns_cache=False, ssl=trusted)
        timeout = aiohttp.ClientTimeout(total=None, connect=self._stall_s, sock_read=self._stall_s)
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            auto_decompress=False,  # a digest is of what lies in the repository
            headers={"Accept-Encoding": "identity"},
        )
        self._session = await self._open.enter_async_context(session)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def pieces(self, path: str, start: int, span_bytes: int) -> AsyncGenerator[bytes, None]:
        """As Source has it."""
        assert self._session, "used outside its `async with`"
        where = self._url.join(URL(quote(path), encoded=True))
        wanted = {"Range": f"bytes={start}-{start + span_bytes - 1}"} if start else {}
        try:
            async with self._session.get(
                where, headers=wanted, max_redirects=REDIRECTS_MAX
            ) as answer:
                skipped = self._beginning(answer, path, start)
                if skipped < 0:
                    return
                async for data in answer.content.iter_chunked(PIECE_BYTES):
                    cut = min(skipped, len(data))
                    skipped -= cut
                    if len(data) > cut:
                        yield data[cut:]
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            raise Away(f"{self.name}: {_said(error)}", _remedy(error)) from error

    def _beginning(self, answer: aiohttp.ClientResponse, path: str, start: int) -> int:
        """How many bytes of the answer are known already; -1: there are no more."""
        if answer.status == 200:
            return start  # it ignores ranges
        if answer.status == 206:
            first = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            if first.isdecimal() and int(first) <= start:
                return start - int(first)
        elif answer.status == _END and start:
            return -1
        elif answer.status in _ABSENT:
            raise Absent(f"{self.name}: has no {path} ({answer.status})")
        raise Away(
            f"{self.name}: answered {answer.status} {quoted(answer.reason or '')}".rstrip(),
            "look into the log of that server",
        )

    def _context(self) -> ssl.SSLContext:
        """Public authorities and the link's own; and the device's certificate, if it has one."""
        context = ssl.create_default_context()
        if self._link.ca_file:
            context.load_verify_locations(self._link.ca_file)
        if self._link.cert_file:
            context.load_cert_chain(self._link.cert_file, self._link.key_file, lambda: "")
        if not self._knows_time():
            context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
        return context


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return quoted(" ".join(str(error).split())) or type(error).__name__


def _remedy(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "set link.ca_file to its authority; check the server's certificate and the clock"
    return "check updates.urls, and the way from this device to that server"
