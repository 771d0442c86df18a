"""A device that fetches one target, as a process that can be killed: FOLDER ROOT_FILE URL TARGET.

It prints the result's path, or the refusal.
"""

import asyncio
import sys
from pathlib import Path

import msgspec

from agent import config
from agent.known_time import KnownTime
from agent.updates.content import Content
from agent.updates.fetched import NotFetched
from tests.updates.bed import TIME, FakeClock, silent

RATE_BYTES_PER_S = 4_000_000


async def main(folder: str, root_file: str, url: str, target: str) -> None:
    settings = {
        "root_file": root_file,
        "urls": [url],
        "free_bytes_min": 0,
        "rate_bytes_per_s_max": RATE_BYTES_PER_S,
    }
    content = Content(
        msgspec.convert(settings, config.Updates),
        msgspec.convert({"ack_from": "broker"}, config.Link),
        "device-7",
        Path(folder),
        KnownTime(Path(folder) / TIME, FakeClock()),
    )
    try:
        print((await content.fetch(target, silent)).path)
    except NotFetched as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
