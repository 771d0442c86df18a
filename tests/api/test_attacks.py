"""What a hostile client does to a real agent: it goes on serving, and gets back what it lent.

Over TLS and over the unix socket. HOLDFAST_LONG=1: over TCP without TLS too, the large bodies go to
every route, and those who are slow with a body are waited for.
"""

import contextlib
import gzip
import json
import os
import resource
import shutil
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import brotli
import psutil
import pytest
import zstandard

from bench import models
from tests.api.house import Pair, trusting
from tests.outside import ROOT, Device, as_json, holdfast, running, until

LONG = bool(os.environ.get("HOLDFAST_LONG"))
TIMEOUT_S = 30.0
SLOW_S = 120.0
LARGE_BYTES = 100 << 20
MEDIUM_BYTES = 4 << 20
PIECE = bytes(1 << 20)
MEMORY_BYTES = 80 << 20  # that the agent may have more than before: what its allocator keeps
SPARE_FDS = 8  # a scrape of the store may be under way
INFER = "/v2/models/tiny4/infer"
LARGE = (INFER, "/api/v1/jobs", "/api/v1/sync/pause", "/api/v1/nothing", "/api/v1/health")
DOORS = ("tcp", "tls", "unix")
ONE = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()


RESET = 0  # in place of a status: it was ended while we still sent


class Answer(NamedTuple):
    status: int
    document: Any


class Site:
    """An agent, its doors, and what it had before anybody attacked it."""

    def __init__(self, folder: Path, tls: bool) -> None:
        self.tls = tls
        pair = Pair(folder)
        pair.write()
        files = {"certificate_file": str(pair.certificate), "key_file": str(pair.key)}
        api = {"port": 0, "socket": str(folder / "holdfast.sock"), "tls": files if tls else None}
        inbox = folder / "inbox"
        inbox.mkdir()
        root = folder / "models"
        shutil.copytree(ROOT / "models/speech", root / "speech")
        models.write(root, "tiny4", models.identity())
        self.device = Device(
            folder,
            {
                "models": {"path": str(root)},
                "domains": {"d": {"models": ["tiny4"], "threads": 1}},
                "audio": {"sources": [{"kind": "folder", "name": "inbox", "path": str(inbox)}]},
                "api": api,
            },
        )
        shutil.copy(ROOT / "samples/workshop.flac", inbox)
        self.heard = inbox / "done/workshop.flac"
        self.context = trusting()

    def ready(self) -> None:
        """All of it was asked once: what is made at the first request is there."""
        until(lambda: all(d["ready"] for d in self.device.status()["domains"].values()), "ready")
        until(lambda: self.heard.exists() and not self.device.ledger("inbox.raw")["held"], "heard")
        said = until(lambda: "/health" in (text := self.device.log.read_text()) and text, "a port")
        self.port = int(said.partition("//127.0.0.1:")[2].partition("/")[0])
        self.process = psutil.Process(self.device.pid)
        for door in self.doors:
            assert self.ask(door, "POST", INFER, body=ONE).status == 200
            assert self.ask(door, "GET", "/metrics", plain=True).status == 200
        self.memory_bytes = self.process.memory_full_info().pss
        self.fds = self.process.num_fds()

    @property
    def doors(self) -> tuple[str, ...]:
        return ("tls" if self.tls else "tcp", "unix")

    def bare(self, door: str) -> socket.socket:
        """A connection that has said nothing."""
        if door != "unix":
            return socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.device.socket))  # without a limit: with one, a full queue is an error
        sock.settimeout(TIMEOUT_S)
        return sock

    def connected(self, door: str) -> socket.socket:
        """A connection on which HTTP is spoken."""
        sock = self.bare(door)
        return self.context.wrap_socket(sock) if door == "tls" else sock

    def ask(
        self,
        door: str,
        method: str,
        path: str,
        *headers: str,
        body: bytes = b"",
        plain: bool = False,
    ) -> Answer:
        """One request, and its answer; 0 where the connection ended without one."""
        length = f"Content-Length: {len(body)}"
        with self.connected(door) as sock:
            with contextlib.suppress(
                ConnectionError, ssl.SSLError
            ):  # it may refuse what it has not all read
                sock.sendall(head(method, path, length, *headers) + body)
            return answer(sock, plain)

    def unharmed(self) -> None:
        """It serves, at each door, and has what it had."""
        for door in self.doors:
            until(lambda door=door: self._serves(door), f"{door} serves")  # type: ignore[misc]
        until(lambda: self.process.num_fds() <= self.fds + SPARE_FDS, "its descriptors are back")
        until(
            lambda: self.process.memory_full_info().pss < self.memory_bytes + MEMORY_BYTES,
            "its memory is back",
        )
        assert "Traceback" not in self.device.log.read_text()

    def _serves(self, door: str) -> bool:
        with contextlib.suppress(OSError):
            found = self.ask(door, "GET", "/api/v1/health")
            return found.status == 200 and found.document["active_requests"] == 1
        return False


def head(method: str, path: str, *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(sock: socket.socket, plain: bool = False) -> Answer:
    """What the agent says to the end; an error must have the form of all errors."""
    taken = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while piece := sock.recv(1 << 16):
            taken += piece
    if not taken:
        return Answer(RESET, None)
    status = int(taken.split(b" ", 2)[1])
    start, _, body = taken.partition(b"\r\n\r\n")
    if plain or b"chunked" in start.lower():
        return Answer(status, body)
    document = json.loads(body)
    assert status < 400 or document.keys() >= {"error", "hint"}, document
    return Answer(status, document)


@pytest.fixture(
    scope="module", params=[True, False] if LONG else [True], ids=["tls", "tcp"][: 1 + LONG]
)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"), request.param)
    with running(made.device):
        made.ready()
        held = made.device.status()["ledger"]
        yield made
        made.unharmed()
        assert made.device.status()["ledger"] == held
        verified = as_json(
            holdfast("outbox", "verify", "--json", "--config", str(made.device.config))
        )
        assert not verified["faults"], verified
        assert made.device.stop() == 0


@pytest.fixture(autouse=True)
def afterwards(site: Site) -> Iterator[None]:
    yield
    site.unharmed()


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Iterator[None]:
    """A thousand clients in one process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 8192), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_thousand_idle_connections_are_turned_away_and_forgotten(site: Site) -> None:
    with contextlib.ExitStack() as idle:
        for _ in range(1000):
            idle.enter_context(site.bare(site.doors[0]))
        for _ in range(3):
            assert site.ask("unix", "GET", "/api/v1/health").status == 200
            assert site.ask("unix", "POST", INFER, body=ONE).status == 200
    until(lambda: site._serves(site.doors[0]), "a place is free")


def test_idle_connections_at_the_socket_leave_the_port_alone(site: Site) -> None:
    with contextlib.ExitStack() as idle:
        for _ in range(200):
            idle.enter_context(site.bare("unix"))
        assert site.ask(site.doors[0], "GET", "/api/v1/health").status == 200


def test_who_neither_speaks_nor_listens_in_time_is_ended(site: Site) -> None:
    """A byte at a time: of a handshake, a header (a body, in the long form); no answer is taken."""
    far = site.doors[0]
    half = head("GET", "/api/v1/health", "X: " + "y" * 4000)
    deaf = head("GET", "/api/v1/openapi.json").replace(b"close", b"keep-alive") * 50
    guests = [Guest(site.connected(far), half) for _ in range(10)]
    guests += [Guest(site.connected("unix"), half) for _ in range(4)]
    guests += [Guest(site.connected(door), deaf, len(deaf), deaf=True) for door in site.doors]
    if site.tls:
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(505)
        guests += [Guest(site.bare(far), hello) for _ in range(10)]
    if LONG:
        slow = (far, INFER), ("unix", INFER), ("unix", "/api/v1/sync/pause")
        for door, path in (*slow, ("unix", "/api/v1/audio"), (far, "/api/v1/jobs")):
            for _ in range(3):
                sock = site.connected(door)
                sock.sendall(head("POST", path, "Content-Length: 60000"))
                guests.append(Guest(sock, b" "))
    end = time.monotonic() + SLOW_S
    while guests:
        guests = [one for one in guests if one.goes_on()]
        assert time.monotonic() < end, f"{len(guests)} go on"
        for door in site.doors:
            assert site.ask(door, "GET", "/api/v1/health").status == 200
        time.sleep(0.1)  # this is how slow they are


class Guest:
    """A client that says so many bytes at a time, again and again; a deaf one reads nothing."""

    def __init__(
        self, sock: socket.socket, said: bytes, step_bytes: int = 1, *, deaf: bool = False
    ) -> None:
        self._sock, self._said, self._deaf = sock, said, deaf
        self._step_bytes, self._at = step_bytes, 0
        sock.setblocking(False)

    def goes_on(self) -> bool:
        """Say more; whether the agent still is there."""
        more = self._said[self._at : self._at + self._step_bytes]
        try:
            self._at = (self._at + self._sock.send(more)) % len(self._said)
            over = not self._deaf and not self._sock.recv(1 << 16)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            over = False
        except OSError:
            over = True
        if over:
            self._sock.close()
        return not over


@pytest.mark.parametrize("path", ["/api/v1/audio", "/api/v1/jobs"])
def test_who_sends_slowly_does_not_keep_the_others_out(site: Site, path: str) -> None:
    """All that one caller may send at once, and then some."""
    slow, far = head("POST", path, "Content-Length: 3000000") + b"{", site.doors[0]
    with contextlib.ExitStack() as opened:
        for _ in range(3):
            opened.enter_context(sock := site.connected("unix"))
            sock.sendall(slow)
        until(lambda: _refused(site, "unix", path, 503), "no more of his are taken")
        found = site.ask(far, "POST", path, body=b"{}")
        assert found.status == 400, "it is read"
    until(lambda: _refused(site, "unix", path, 400), "his places are free again")


def _refused(site: Site, door: str, path: str, status: int) -> bool:
    found = site.ask(door, "POST", path, body=b"{}")
    assert found.document["hint"]
    return found.status == status


def routes(site: Site) -> list[tuple[str, str]]:
    """All that take a body, or might."""
    paths = site.ask("unix", "GET", "/api/v1/openapi.json").document["paths"]
    return [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, methods in paths.items()
        for method in methods
        if method != "get"
    ]


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_that_is_too_large_is_refused_at_every_door(site: Site, chunked: bool) -> None:
    most = LARGE if LONG else LARGE[:1] if chunked else LARGE[:3]
    asked = [("POST", path, LARGE_BYTES if path in most else MEDIUM_BYTES) for path in LARGE]
    asked += [("GET", LARGE[-1], MEDIUM_BYTES)]
    asked += [(*one, LARGE_BYTES if LONG else MEDIUM_BYTES) for one in routes(site)]
    assert len(asked) > len(LARGE) + 5
    for door in site.doors:
        for method, path, size_bytes in asked:
            found = flooded(site, door, method, path, size_bytes, chunked)
            assert found.status < 500 or found.status in (503, 507), (door, method, path, found)
            if size_bytes == LARGE_BYTES and method == "POST" and path in LARGE[:3]:
                assert found.status in (RESET, 403, 413, 503), (door, path, found)
            if (door, path) == ("unix", "/api/v1/sync/pause"):
                assert found.status == 413
                assert "65536" in found.document["error"]


def flooded(
    site: Site, door: str, method: str, path: str, size_bytes: int, chunked: bool
) -> Answer:
    """Send so much to a door; what it says."""
    kind = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size_bytes}"
    frame = b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if chunked else PIECE
    with site.connected(door) as sock:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            sock.sendall(head(method, path, kind))
            for _ in range(size_bytes // len(PIECE)):
                sock.sendall(frame)
            sock.sendall(b"0\r\n\r\n" if chunked else b"")
        return answer(sock)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda content: brotli.compress(content, quality=5),
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("encoding", PACKED)
def test_a_body_that_unpacks_to_too_much_is_refused_at_every_door(
    site: Site, encoding: str
) -> None:
    bomb = PACKED[encoding](bytes(LARGE_BYTES))
    for door in site.doors:
        for method, path in [("POST", one) for one in LARGE] + (routes(site) if LONG else []):
            found = site.ask(door, method, path, f"Content-Encoding: {encoding}", body=bomb)
            assert found.status in (0, *range(400, 500)), (door, method, path, found)
            if (door, path) == ("unix", "/api/v1/sync/pause"):
                assert found.status in (400, 415)  # what aiohttp cannot unpack, it says itself


def test_a_flood_of_requests_is_answered_one_after_the_other(site: Site) -> None:
    health = head("GET", "/api/v1/health").replace(b"close", b"keep-alive")
    infer = head("POST", INFER, f"Content-Length: {len(ONE)}").replace(b"close", b"keep-alive")
    for door in site.doors:
        for one in (health, infer + ONE):
            with site.connected(door) as sock:
                for _ in range(100 if LONG else 2):
                    sock.sendall(one * 100)
                    taken = bytearray()
                    while taken.count(b"HTTP/1.1 200 ") < 100:
                        taken += (piece := sock.recv(1 << 16))
                        assert piece
                assert b"HTTP/1.1 4" not in taken


@pytest.mark.parametrize("kind", ["many", "long", "line", "endless"])
def test_a_flood_of_headers_is_refused(site: Site, kind: str) -> None:
    said = {
        "many": head("GET", "/api/v1/health", *(f"X{n}: y" for n in range(200_000))),
        "long": head("GET", "/api/v1/health", "X: " + "y" * (4 << 20)),
        "line": head("GET", "/" + "y" * (4 << 20)),
        "endless": head("GET", "/api/v1/health")[:-2] + b"X: y\r\n" * (1 << 20),
    }[kind]
    for door in site.doors:
        with site.connected(door) as sock:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                sock.sendall(said)
            assert answer(sock).status in (0, 400, 414, 431)
