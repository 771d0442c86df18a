"""What the door for inference adds to a call: over TCP, against the same call without a door.

One process has all of the agent's side: its HTTP server, the scheduler, and a domain whose worker
runs the tiny model. A call is made in four ways, in turn, one after the other (c1), with the same
sixteen inputs as raw tensors:

call      by the scheduler, in the agent's loop: no door
echo      over TCP to a bare protocol in the same loop, which answers with as many bytes: no call
lane      over TCP by the short way (agent/api/routes/express.py)
aiohttp   over TCP by the whole way, which a request with a `Content-Encoding` takes

lane_vs_call_p50, _p99       how many times as long a call takes through the door, smaller is better
aiohttp_vs_call_p50, _p99    the same by the whole way
lane_vs_aiohttp_p50, _p99    what the short way saves

`*_added_us` is the difference to `call`, its p50 and its p99 each to their own: what a program on
this machine pays for HTTP. `*_own_us` is what of it is the door's: without `echo`, which is what
TCP, the loop and the client of load.py take for bytes that nobody looks at.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import uvloop

from agent import VERSION, config
from agent.api.routes.inference import Inference
from agent.api.server import Server
from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.health.status import Identity, Status
from agent.inference.admission import Admission
from agent.inference.cache import Cache
from agent.inference.catalog import Catalog, Model
from agent.inference.domains.domain import Domain, Parts
from agent.inference.domains.zygote import Zygote
from agent.inference.oip import Bodies
from agent.inference.oip_asked import HEADER
from agent.inference.scheduler import Request, Scheduler
from agent.inference.sequences import Sequences
from bench import models, report
from bench.forms import OPEN_BINARY
from bench.load import Load
from bench.served import SIZES, ring
from bench.unconfined import Unconfined

MODEL = "tiny"
PAIRS, PAIRS_FULL = 12, 80
SIDE_S = 0.4
WARM_S = 0.3
READY_S_MAX = 30.0
END = b"\r\n\r\n"
WAYS = ("call", "echo", "lane", "aiohttp")
QUANTILES = {"p50": 49, "p99": 98}
Cuts = dict[str, float]  # seconds, by quantile


class Echo(asyncio.Protocol):
    """Answers whatever comes with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A small request comes in one piece."""
        self._transport.write(self._answer)


class House:
    """A domain, a scheduler before it, and the doors of both."""

    def __init__(self, root: Path) -> None:
        clock = Clock()
        catalog = Catalog(root)
        settings = config.Domain(models=[MODEL], threads=1)

        def choose() -> dict[str, Model]:
            return {MODEL: catalog.verified(MODEL)}

        self.zygote = Zygote()
        ways = (clock, lambda _: None, Admission(clock).prove, Unconfined(), self.zygote)
        self.domain = Domain(MODEL, settings, Parts(choose, *ways, 1))
        self.scheduler = Scheduler(self, Cache(1 << 20), Sequences(clock), clock)
        where = config.Api(port=0, socket=str(root / "holdfast.sock"))
        status = Status(_identity, Conditions(clock), clock, _nothing, {}, root / "status.json")
        self.server = Server(where, status, _no_metrics, inference=Inference(self.scheduler))

    def serving(self, model: str) -> Domain | None:
        """The one domain."""
        return self.domain if model == MODEL else None


def _identity() -> Identity:
    return {"device": "bench", "version": VERSION}


async def _nothing() -> dict[str, Any]:
    return {}


async def _no_metrics(_: str) -> tuple[bytes, str]:
    return b"", "text/plain"


@asynccontextmanager
async def running(root: Path) -> AsyncIterator[House]:
    """Ready."""
    house = House(root)
    async with house.zygote, house.domain, house.server:
        task = asyncio.create_task(house.domain.run())
        try:
            async with asyncio.timeout(READY_S_MAX):
                await house.domain.ready.wait()
            yield house
        finally:
            task.cancel()
            await asyncio.wait([task])


class Sides:
    """The four ways."""

    def __init__(self, house: House, stack: ExitStack) -> None:
        self._house = house
        self._stack = stack
        self._calls: list[Request] = []
        self._loads: dict[str, Load] = {}

    async def open(self, more: AsyncExitStack) -> None:
        """Write the requests, and have those who send them."""
        written = [OPEN_BINARY.write(MODEL, SIZES[MODEL][0], values) for values in ring(MODEL)]
        bodies = Bodies()
        for one in written:
            head, _, body = one.partition(END)
            length = head.partition(HEADER.encode() + b": ")[2].split(b"\r\n")[0].decode()
            self._calls.append(bodies.parsed(MODEL, None, length, body).request)
        port, whole = self._house.server.port, [_whole(one) for one in written]
        answer = await _answer(port, written[0])
        loop = asyncio.get_running_loop()
        echo = await loop.create_server(lambda: Echo(answer), "127.0.0.1", 0)
        await more.enter_async_context(echo)
        ports = {"echo": echo.sockets[0].getsockname()[1], "lane": port, "aiohttp": port}
        for way, at in ports.items():
            asked = whole if way == "aiohttp" else written
            self._loads[way] = self._stack.enter_context(Load(at, asked))

    async def latencies(self, way: str, seconds: float) -> Cuts:
        """One side: so long, one call after the other."""
        if way == "call":
            found = await self._called(seconds)
        else:
            volley = await asyncio.to_thread(self._loads[way].run, 1, seconds)
            found = list(volley.latencies_s)
        cuts = statistics.quantiles(found, n=100)
        return {name: cuts[at] for name, at in QUANTILES.items()}

    async def _called(self, seconds: float) -> list[float]:
        found, scheduler = list[float](), self._house.scheduler
        until_s = time.perf_counter() + seconds
        while True:
            for request in self._calls:
                began_s = time.perf_counter()
                await scheduler.start(request)
                ended_s = time.perf_counter()
                found.append(ended_s - began_s)
                if ended_s >= until_s:
                    return found


def _whole(request: bytes) -> bytes:
    """The same, which the short way hands over."""
    line, _, rest = request.partition(b"\r\n")
    return line + b"\r\nContent-Encoding: identity\r\n" + rest


async def _answer(port: int, request: bytes) -> bytes:
    """What the door answers to a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(END)
    lines = head.lower().split(b"\r\n")
    (length,) = (line[16:] for line in lines if line.startswith(b"content-length: "))
    body = await reader.readexactly(int(length))
    writer.close()
    return head + body


async def measure(pairs: int) -> tuple[dict[str, report.Ratio], dict[str, float]]:
    """The ways in turn."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name, ExitStack() as stack:
        root = Path(name)
        models.write(root, MODEL, models.tiny())
        async with running(root) as house, AsyncExitStack() as more:
            sides = Sides(house, stack)
            await sides.open(more)
            for way in WAYS:
                await sides.latencies(way, WARM_S)
            rounds = [
                {way: await sides.latencies(way, SIDE_S) for way in WAYS} for _ in range(pairs)
            ]
            stack.close()  # who loads hangs up before the doors close
    return _ratios(rounds), _figures(rounds)


def _ratios(rounds: list[dict[str, Cuts]]) -> dict[str, report.Ratio]:
    compared = (("lane", "call"), ("aiohttp", "call"), ("lane", "aiohttp"))
    return {
        f"{one}_vs_{other}_{cut}": report.Ratio.of([r[one][cut] / r[other][cut] for r in rounds])
        for one, other in compared
        for cut in QUANTILES
    }


def _figures(rounds: list[dict[str, Cuts]]) -> dict[str, float]:
    def median_us(cut: str, *signed: tuple[int, str]) -> float:
        each = (sum(sign * one[way][cut] for sign, way in signed) for one in rounds)
        return statistics.median(each) * 1e6

    found = {f"{way}_{cut}_us": median_us(cut, (1, way)) for way in WAYS for cut in QUANTILES}
    for way in ("lane", "aiohttp"):
        for cut in QUANTILES:
            added = ((1, way), (-1, "call"))
            found[f"{way}_added_{cut}_us"] = median_us(cut, *added)
            found[f"{way}_own_{cut}_us"] = median_us(cut, *added, (-1, "echo"))
    return found


def main() -> None:
    asked = report.options(__doc__).parse_args()
    ratios, found = uvloop.run(measure(PAIRS_FULL if asked.full else PAIRS))
    report.Report.of("door", ratios, found).show(as_json=asked.json)


if __name__ == "__main__":
    main()
