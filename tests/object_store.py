"""A small S3: takes PUT and HEAD, checks signature, expiry and checksum by itself, and misbehaves.

It reads Signature Version 4 from the request's side, and shares no code with what signs.
"""

import asyncio
import base64
import hashlib
import hmac
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

from aiohttp import web

ACCESS, SECRET, REGION, BUCKET = "AKIATEST", "s3cr3t/of+the=test", "eu-test-1", "blobs"


def fault(
    secret: str, method: str, path: str, query: str, headers: Mapping[str, str], now_s: float
) -> str:
    """What is wrong with a request signed in its query, by S3's own codes; empty: nothing."""
    given = dict(pair.split("=", 1) for pair in query.split("&") if "=" in pair)
    signature = given.pop("X-Amz-Signature", "")
    for name in ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders"):
        if name not in given:
            return "AuthorizationQueryParametersError"
    if unquote(given["X-Amz-Algorithm"]) != "AWS4-HMAC-SHA256":
        return "AuthorizationQueryParametersError"
    _, day, region, product, end = unquote(given["X-Amz-Credential"]).split("/")
    signed_at = datetime.strptime(given["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    age_s = now_s - signed_at.timestamp()
    names = unquote(given["X-Amz-SignedHeaders"]).split(";")
    held = {name.lower(): value for name, value in headers.items()}
    if any(n.startswith("x-amz-") and n not in names for n in held) or "host" not in names:
        return "AccessDenied"  # there were headers present in the request which were not signed
    canonical = [method, quote(unquote(path), safe="/-_.~")]
    canonical.append(
        "&".join(
            sorted(
                f"{quote(unquote(k), safe='-_.~')}={quote(unquote(v), safe='-_.~')}"
                for k, v in given.items()
            )
        )
    )
    canonical += [f"{name}:{held.get(name, '').strip()}" for name in names]
    canonical += ["", ";".join(names), "UNSIGNED-PAYLOAD"]
    hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{given['X-Amz-Date']}\n{day}/{region}/{product}/{end}\n{hashed}"
    key = ("AWS4" + secret).encode()
    for part in (day, region, product, end):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    if hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest() != signature:
        return "SignatureDoesNotMatch"
    if not -900 <= age_s <= int(given["X-Amz-Expires"]):
        return "AccessDenied"  # "Request has expired"
    return ""


class ObjectStore:
    """Listens on a free port of this machine; use it with `async with`, in one event loop."""

    def __init__(
        self, wall: Callable[[], float] = time.time, tls: ssl.SSLContext | None = None
    ) -> None:
        self.objects: dict[str, bytes] = {}
        self.checksums = True  # whether it keeps and tells them, as S3 does
        self.statuses: list[int] = []  # what the next PUTs are answered, whatever they bring
        self.cuts: list[int] = []  # after how many bytes the next PUTs lose their connection
        self.late_s: list[float] = []  # how far its clock is ahead at the next PUTs
        self.spoils = 0  # so many PUTs are answered 200, and something else of that size is kept
        self.hangs = False  # whether it answers no HEAD
        self.hanging = 0
        self.loses = 0  # so many PUTs are answered 200, and their object is not kept
        self.hold_after_bytes: int | None = None
        self.holding = asyncio.Event()  # a PUT is held there
        self.go_on = asyncio.Event()
        self.asked: list[tuple[str, int, str]] = []  # method, status, code
        self.url = ""
        self._wall = wall
        self._tls = tls
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        port = int(self.url.rpartition(":")[2] or 0)  # the same again
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self._tls)
        await site.start()
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        late_s = self.late_s.pop(0) if self.late_s and request.method == "PUT" else 0.0
        now_s = self._wall() + late_s
        code = fault(SECRET, request.method, path, query, request.headers, now_s)
        if code:
            return self._say(request, 403, code)
        key = unquote(path.removeprefix(f"/{BUCKET}/"))
        if request.method == "PUT":
            return await self._put(request, key)
        if self.hangs:
            self.hanging += 1
            await self.go_on.wait()
        content = self.objects.get(key)
        if content is None:
            return self._say(request, 404, "NoSuchKey")
        self.asked.append((request.method, 200, ""))
        headers = {"Content-Length": str(len(content))}
        if self.checksums and request.headers.get("x-amz-checksum-mode") == "ENABLED":
            headers["x-amz-checksum-sha256"] = _checksum(content)
        return web.Response(headers=headers)

    async def _put(self, request: web.BaseRequest, key: str) -> web.StreamResponse:
        if self.statuses:
            return self._say(request, self.statuses.pop(0), "SlowDown")
        if "Content-Length" not in request.headers:
            return self._say(request, 411, "MissingContentLength")
        cut = self.cuts.pop(0) if self.cuts else None
        content = bytearray()
        async for piece in request.content.iter_chunked(16_384):
            content += piece
            if cut is not None and len(content) >= cut:
                assert request.transport
                request.transport.abort()
                raise ConnectionResetError
            if self.hold_after_bytes is not None and len(content) >= self.hold_after_bytes:
                self.holding.set()
                await self.go_on.wait()
        if len(content) != request.content_length:
            return self._say(request, 400, "IncompleteBody")
        if request.headers.get("x-amz-checksum-sha256") != _checksum(bytes(content)):
            return self._say(request, 400, "BadDigest")
        if self.loses:
            self.loses -= 1
        elif self.spoils:
            self.spoils -= 1
            self.objects[key] = bytes(byte ^ 1 for byte in content)
        else:
            self.objects[key] = bytes(content)
        return self._say(request, 200, "")

    def _say(self, request: web.BaseRequest, status: int, code: str) -> web.Response:
        self.asked.append((request.method, status, code))
        text = f"<Error><Code>{code}</Code></Error>" if code else ""
        return web.Response(status=status, text=text, content_type="application/xml")

    def statuses_of(self, method: str) -> list[int]:
        """How the requests of this method were answered."""
        return [status for asked, status, _ in self.asked if asked == method]


def _checksum(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


class Apart:
    """An ObjectStore in a thread of its own, for tests without a loop; with `running`."""

    def __init__(self) -> None:
        self.store = ObjectStore()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start it; at the port that it had before, with the objects that it had."""
        self._loop = loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.store.__aenter__(), loop).result()

    def kill(self) -> None:
        """It is gone; what it held back is cut off."""
        if self._loop and self._thread:
            asyncio.run_coroutine_threadsafe(self.store.__aexit__(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None

    def hold(self, after_bytes: int) -> None:
        """From now on no PUT goes on beyond so many bytes."""
        self.store.holding.clear()
        self.store.go_on.clear()
        self.store.hold_after_bytes = after_bytes

    def let_go(self) -> None:
        """All go on."""
        assert self._loop
        self.store.hold_after_bytes = None
        self._loop.call_soon_threadsafe(self.store.go_on.set)


def options(folder: Path, url: str) -> list[str]:
    """With which an ingest knows the store at `url`."""
    file = folder / "credentials"
    file.write_text(f"[far]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n")
    return [
        *("--s3-endpoint", url, "--s3-bucket", BUCKET, "--s3-region", REGION),
        *("--s3-prefix", "site/", "--s3-keys-file", str(file), "--s3-profile", "far"),
    ]
