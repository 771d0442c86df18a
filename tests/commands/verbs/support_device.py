"""As tests/commands/device.py, with the verbs that upload; each archive is another one.

python -m tests.commands.verbs.support_device FOLDER STATE TIMES HOW
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from agent.commands.verb import Verb
from agent.commands.verbs.support import SupportVerbs
from agent.records import Upload
from agent.store.uploads import Kept
from tests.commands.device import States, main, write
from tests.commands.rig import Rig

ARCHIVE_BYTES = 200_000


def verbs(one: Rig, folder: Path, states: States) -> list[Verb[Any]]:
    """The real ones, watched."""

    async def archive() -> bytes:
        states.reach("make:before")
        write(folder / "made", "support")
        return os.urandom(ARCHIVE_BYTES)

    async def log(level: str, with_journal: bool) -> bytes:
        write(folder / "made", f"log {level} {with_journal}")
        return os.urandom(ARCHIVE_BYTES)

    async def keep(upload: Upload, content: bytes) -> Kept:
        states.reach("keep:before")
        kept = await one.store.uploads.keep(upload, content)
        states.reach("keep:after")
        return kept

    return SupportVerbs(archive, log, keep).verbs()


if __name__ == "__main__":
    where = Path(sys.argv[1])
    struck = States(where, sys.argv[2], int(sys.argv[3]), sys.argv[4])
    asyncio.run(main(where, struck, verbs))
