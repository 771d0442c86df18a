"""Any request to the doors of the Open Inference Protocol of a real agent: bent tensors of each
dtype, lengths that lie, bodies packed in any way, any method and path.

None may cost the agent, or the process of its models, more than an answer that says no.
"""

import asyncio
import gzip
import json
import os
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import psutil
import pytest

from agent.inference.oip_asked import HEADER
from agent.store.tensors import WIDTHS
from tests.api.test_infer import ODD, bent
from tests.api.triton import KINDS, Triton
from tests.outside import running

SEED = int(os.environ.get("HOLDFAST_SEED", "20261121"))
REQUESTS = 10_000 if os.environ.get("HOLDFAST_LONG") else 600
AT_ONCE = 8
DEADLINE_S = 90.0
RETURNS_BYTES = 48 << 20
DTYPES = list(KINDS)
HEADS: list[Any] = ["-1", "+5", "5_0", " 7", "1e2", "x", "", "9" * 30, "\u00b2", "0x10"]
PATHS = [
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/models/mixed"),
    *("/v2/models/mixed/config", "/v2/models/mixed/stats", "/v2/models/mixed/versions/x/ready"),
    *("/v2/models//infer", "/v2/models/%00/ready", "/v2/models/mixed/versions/99999999999/config"),
    *("/v2/repository/index", "/v2/repository/models/mixed/load", "/v2/logging", "/v2/models/"),
    *("/v2/repository/models/../unload", "/v2/repository/models/none/unload", "/v2/nothing"),
    *("/v2/systemsharedmemory/region/x/register", "/v2/models/mixed/trace/setting"),
]


class Sent(NamedTuple):
    """A request, whole."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes
    hurries: bool  # it asks for an answer in no time

    def wire(self) -> bytes:
        lines = [self.line, *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + self.body


def raw_of(chance: random.Random, dtype: str, count: int) -> bytes:
    """So many elements; those of BYTES may say that they are longer than they are."""
    if dtype != "BYTES":
        return chance.randbytes(count * WIDTHS[dtype])
    elements = [chance.choice([b"", b"x", "\N{SNOWMAN}".encode(), b"\xff", b"y" * 300])
                for _ in range(count)]  # fmt: skip
    odd = chance.choice([*[0] * 9, 1, -1, 2**31, 2**32 - 1])
    sizes = [len(one) for one in elements]
    if sizes and odd:
        at = chance.randrange(count)
        sizes[at] = odd if odd > 1 else max(0, sizes[at] + odd)
    return b"".join(struct.pack("<I", n) + one for n, one in zip(sizes, elements, strict=True))


def inference(chance: random.Random) -> tuple[str, list[tuple[str, str]], bytes]:
    """A path, its headers and a body that is nearly right."""
    dtype = chance.choice(DTYPES)
    rows = chance.choice([0, 1, 1, 1, 2, 7])
    content = raw_of(chance, dtype, rows * 4)
    size = (
        len(content)
        if chance.random() < 0.8
        else chance.choice([0, 1, -1, 1 << 40, len(content) + 1])
    )
    tensor: dict[str, Any] = {"name": "x", "shape": [rows, 4], "datatype": dtype}
    tensor["parameters"] = {"binary_data_size": size}
    if chance.random() < 0.3:
        del tensor["parameters"]
        tensor["data"] = [
            chance.choice([0, 1, True, 1.5, "a", None, 2**70]) for _ in range(rows * 4)
        ]
        content = b""
    document: Any = {"inputs": [tensor]}
    if chance.random() < 0.5:
        document["outputs"] = [{"name": "y", "parameters": {"binary_data": chance.random() < 0.5}}]
    if chance.random() < 0.15:
        key = chance.choice(["priority", "timeout", "sequence_id", "class", "binary_data_output"])
        document["parameters"] = {key: chance.choice(ODD)}
    for _ in range(chance.choice([*[0] * 9, 1, 2, 3])):
        document = bent(chance, document)
    text = json.dumps(document).encode()
    length = str(len(text) + chance.choice([0] * 12 + [-1, 1, 4, 1000]))
    headers = [(HEADER, chance.choice([length] * 20 + HEADS))] if chance.random() < 0.95 else []
    headers *= chance.choice([1] * 20 + [2])
    version = chance.choice([*[""] * 6, *["/versions/1"] * 3, "/versions/2", "/versions/x"])
    return f"/v2/models/same_{dtype.lower()}{version}/infer", headers, text + content


def scratched(chance: random.Random, body: bytes) -> bytes:
    """Some bytes changed, cut off or doubled."""
    for _ in range(chance.choice([*[0] * 9, 1, 3])):
        at = chance.randrange(len(body) + 1)
        match chance.randrange(4):
            case 0:
                body = body[:at]
            case 1:
                body = body[:at] + chance.randbytes(3) + body[at:]
            case 2:
                body = body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
            case _:
                body += body[at:]
    return body


def packed(chance: random.Random, body: bytes) -> tuple[list[tuple[str, str]], bytes]:
    match chance.randrange(12):
        case 0 | 1:
            return [("Content-Encoding", "gzip")], scratched(chance, gzip.compress(body))
        case 2 | 3:
            return [("Content-Encoding", "deflate")], scratched(chance, zlib.compress(body))
        case 4:
            kind = chance.choice(["gzip", "deflate", "br", "gzip, gzip", "x", "identity", ""])
            return [("Content-Encoding", kind)], body
        case 5 if chance.random() < 0.1:
            return [("Content-Encoding", "gzip")], gzip.compress(body + bytes(80 << 20), 1)
    return [], body


def request(chance: random.Random) -> Sent:
    path, headers, body = inference(chance)
    method = "POST"
    if chance.random() < 0.15:
        path = chance.choice(PATHS)
        method = chance.choice(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"])
        body = json.dumps(bent(chance, {"ready": True, "parameters": {"version": 1}})).encode()
        headers = []
    hurries = b'"timeout": 1' in body
    more, body = packed(chance, scratched(chance, body))
    headers += more
    if chance.random() < 0.3:
        accepts = ["gzip", "deflate", "gzip, deflate, br", "*;q=0", "gzip;q=2", ";;,", "x" * 200]
        headers.append(("Accept-Encoding", chance.choice(accepts)))
    if chance.random() < 0.1:
        headers.append(("Transfer-Encoding", "chunked"))
        body = (
            b"".join(b"%x\r\n%s\r\n" % (len(body), body) for body in [body] if body) + b"0\r\n\r\n"
        )
    else:
        headers.append(("Content-Length", str(len(body))))
    headers += [("Host", "localhost"), ("Connection", "close")]
    return Sent(f"{method} {path} HTTP/1.1", headers, body, hurries)


async def status_of(port: int, sent: Sent) -> int:
    """What it is answered with."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            writer.write(sent.wire())
            line = await reader.readline()
            await reader.read()
    except ConnectionError:  # it was refused before all of it was sent
        return 400
    finally:
        writer.close()
    return int(line.split()[1])


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    device = Triton(tmp_path_factory.mktemp("any"))
    with running(device):
        device.worker()
        yield device


async def test_any_request(agent: Triton) -> None:
    chance, worker = random.Random(SEED), agent.worker()
    processes = psutil.Process(agent.pid), psutil.Process(worker)
    seen: dict[int, int] = {}
    rss: list[list[int]] = []
    for _ in range(REQUESTS // AT_ONCE):
        asked = [request(chance) for _ in range(AT_ONCE)]
        found = await asyncio.gather(*(status_of(agent.port, one) for one in asked))
        for one, status in zip(asked, found, strict=True):
            late = status == 504 and one.hurries
            assert 200 <= status < 500 or late, (status, one.line, one.headers, one.body[:1000])
            seen[status] = seen.get(status, 0) + 1
        rss.append([one.memory_info().rss for one in processes])
    assert seen[200] > REQUESTS / 10, seen
    assert seen[400] > REQUESTS / 10, seen
    assert {404, 415} <= seen.keys(), seen
    assert not agent.dead()
    assert agent.worker() == worker
    assert agent.status()["domains"]["tensors"]["restarts"] == 0
    for before, after in zip(rss[len(rss) // 4], rss[-1], strict=True):
        assert after < before + RETURNS_BYTES, "the memory comes back"
