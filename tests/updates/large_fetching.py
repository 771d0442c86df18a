"""A device that fetches something large, as a process that can be killed.

FOLDER ROOT_FILE URL TARGET BROKER_URL; with `mqtt:` as URL it asks by that broker. It prints one
JSON object: `path`, `first_share` (how far it was when it first told of it), `grown_bytes` (what
its memory has grown by at its highest, since everything was loaded).
"""

import asyncio
import json
import re
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from agent import config
from agent.known_time import KnownTime
from agent.updates.content import Content
from tests.updates.bed import TIME, FakeClock
from tests.updates.by_broker import DEVICE, device

RATE_BYTES_PER_S = 30_000_000  # so that it can be killed on the way


async def main(folder: str, root_file: str, url: str, target: str, broker_url: str) -> None:
    settings = {
        "root_file": root_file,
        "urls": [url],
        "free_bytes_min": 0,
        "rate_bytes_per_s_max": RATE_BYTES_PER_S,
        "backoff_s_min": 0.01,
        "backoff_s_max": 0.02,
    }
    link = msgspec.convert({"ack_from": "broker"}, config.Link)
    shares: list[float] = []

    async def told(share: float, _: str) -> None:
        if not shares:
            shares.append(share)

    async with AsyncExitStack() as open_:
        payload_bytes_max = link.payload_bytes_max
        way = device(broker_url, payload_bytes_max=payload_bytes_max) if url == "mqtt:" else None
        content = Content(
            msgspec.convert(settings, config.Updates),
            link,
            DEVICE,
            Path(folder),
            KnownTime(Path(folder) / TIME, FakeClock()),
            await open_.enter_async_context(way) if way else None,
        )
        before = _highest_bytes()
        fetched = await content.fetch(target, told)
        grown_bytes = _highest_bytes() - before
    print(json.dumps({"path": fetched.path, "first_share": shares[0], "grown_bytes": grown_bytes}))


def _highest_bytes() -> int:
    """Not getrusage's, which has what the process was before its exec, too."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
