"""A fleet's repository on disk, a server for it, a device that fetches; and a clock of our own."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from tuf.api.metadata import Metadata

from agent import config
from agent.clock import Clock
from agent.known_time import KnownTime
from agent.updates.checker import check
from agent.updates.checking import Checked, Order
from agent.updates.chunks import Chunks
from agent.updates.content import Content
from fleet.updates import drafting, keys
from fleet.updates.draft import Terms
from fleet.updates.keys import Signers
from fleet.updates.publishing import Publishing
from fleet.updates.repository import ROLES, Repository

NOW_S = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
DAY_S = 86_400.0
CONTENT = bytes(i * 7 % 251 for i in range(300_000))
TARGET = "models/speech-4.tar"


class FakeClock(Clock):
    """The wall says `wall_s`; whether it is true, and the boot, can be set too."""

    def __init__(self, wall_s: float = NOW_S, *, true: bool = True, boot: str = "boot-1") -> None:
        super().__init__()
        self.wall_s = wall_s
        self.mono_s = 1000.0
        self.true = true
        self.boot = boot

    def monotonic(self) -> float:
        return self.mono_s

    def wall(self) -> float:
        return self.wall_s

    def synchronised(self) -> bool:
        return self.true


class Shop:
    """The fleet's side, as `holdfast-fleet updates` does it, at a time of its own."""

    def __init__(self, folder: Path, **thresholds: int) -> None:
        self.keys = folder / "keys"
        self.repository = Repository(folder)
        self.now_s = NOW_S
        self.terms = Terms()
        made = {
            role: [keys.make(self.keys, f"{role}-{i}") for i in range(thresholds.get(role, 1))]
            for role in ROLES
        }
        public = {role: [one.public_key for one in of] for role, of in made.items()}
        self.signing().begin(public, thresholds)

    @property
    def served(self) -> Path:
        return self.repository.folder

    @property
    def metadata(self) -> Path:
        return self.served / "metadata"

    @property
    def root_file(self) -> Path:
        return self.repository.root_file(1)

    def signers(self) -> Signers:
        return keys.found([self.keys])

    def signing(self, signers: Signers | None = None) -> Publishing:
        now = datetime.fromtimestamp(self.now_s, UTC)
        return Publishing(self.repository, signers or self.signers(), self.terms, now)

    def add(self, content: bytes = CONTENT, target: str = TARGET, **about: Any) -> None:
        file = self.repository.home / "content"
        file.write_bytes(content)
        told = {"kind": "model", "name": "speech", "version": "4", **about}
        drafting.add(self.repository, file, told, target)

    def publish(self, *renew: str) -> str:
        """Why the draft waits."""
        state = self.repository.state()
        done = self.signing().publish(state, drafting.draft(self.repository), renew)
        if not done.waits:
            drafting.done(self.repository, state)
        return done.waits

    def forge(self, name: str, change: Callable[[dict[str, Any]], None], *by: str) -> None:
        """Change a document of the metadata, and sign it by the keys of these roles, if any."""
        path = self.metadata / name
        document = msgspec.json.decode(path.read_bytes())
        change(document["signed"])
        if by:
            document["signatures"] = []
        changed: Metadata[Any] = Metadata.from_bytes(msgspec.json.encode(document))
        root: Any = Metadata.from_bytes(self.root_file.read_bytes()).signed
        for keyid in [one for role in by for one in root.roles[role].keyids]:
            changed.sign(self.signers()[keyid], append=True)
        path.write_bytes(changed.to_bytes() if by else msgspec.json.encode(document))

    def copy(self, folder: Path) -> Path:
        """What is served now, elsewhere: an old stick, a mirror that nobody keeps."""
        return Path(shutil.copytree(self.served, folder))


class FolderLine:
    """What the checking process hears from the agent, where files lie in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def want(self, path: str, bytes_max: int) -> bytes | None:
        try:
            with (self._root / path).open("rb") as file:
                return file.read(bytes_max + 1)
        except OSError:  # not there, or under a name that no disk takes
            return None


def believe(
    served: Path, root_file: Path, folder: Path, at_s: float = NOW_S, target: str = ""
) -> Checked:
    """A check without a process of its own. Raises NotFetched."""
    folder.mkdir(parents=True, exist_ok=True)
    return judged(FolderLine(served), root_file, folder, at_s, target)


def judged(
    line: FolderLine, root_file: Path, folder: Path, at_s: float = NOW_S, target: str = ""
) -> Checked:
    """The same, of what `line` brings."""
    order = Order(
        root_file=str(root_file), folder=str(folder), at_s=at_s, target=target, lists=not target
    )
    return check(order, line)  # type: ignore[arg-type]


TIME = "known-time.json"


def content(
    folder: Path,
    shop: Shop,
    *urls: str,
    clock: Clock | None = None,
    chunks: Chunks | None = None,
    link: dict[str, Any] | None = None,
    **settings: Any,
) -> Content:
    """A device's way to content; it is patient for no longer than a test."""
    told = {
        "root_file": str(shop.root_file),
        "urls": list(urls),
        "free_bytes_min": 0,
        "stall_s": 5.0,
        "tries_max": 3,
        "backoff_s_min": 0.01,
        "backoff_s_max": 0.02,
        **settings,
    }
    return Content(
        msgspec.convert(told, config.Updates),
        msgspec.convert({"ack_from": "broker", **(link or {})}, config.Link),
        "device-7",
        folder,
        KnownTime(folder / TIME, clock or FakeClock()),
        chunks,
    )


async def silent(_: float, __: str) -> None:
    """Nobody asks how far it is."""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """A real HTTP server of a folder; `asked` are the paths and ranges; `odd` answers instead."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, str]] = []
        self.odd: dict[str, Handler] = {}  # by how a path ends
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, request.headers.get("Range", "")))
        for end, handler in self.odd.items():
            if request.path.endswith(end):
                return await handler(request)
        path = self.root / request.path.lstrip("/")
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)


@asynccontextmanager
async def serving(root: Path, ssl: Any = None) -> AsyncIterator[Server]:
    """A server while it is needed."""
    server = Server(root)
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        server.url = f"{'https' if ssl else 'http'}://127.0.0.1:{port}/"
        yield server
    finally:
        await runner.cleanup()


async def forever(data: bytes, response: web.StreamResponse, request: web.Request) -> None:
    """The same bytes for ever, until nobody listens."""
    await response.prepare(request)
    while True:
        await response.write(data)
        await asyncio.sleep(0)
