"""The log, or all that somebody needs who looks into the device, into the outbox as one record."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from msgspec import Struct

from agent.commands.verb import Call, NoArgs, Verb, again
from agent.records import Upload
from agent.store.uploads import Kept, kept

LANE = "support"  # one archive in memory at a time
MAKE_S = 300.0
Level = Literal["debug", "info", "warning", "error"]
Make = Callable[[], Awaitable[bytes]]


class LogUpload(Struct, frozen=True, forbid_unknown_fields=True):
    """The lines that the agent has kept, of at least this level; with `journal` those that systemd
    has of its unit, too, where the agent may read them."""

    level: Level = "debug"
    journal: bool = False


class SupportVerbs:
    """Each goes on after a crash: it keeps what it has made in one commit with the note of it."""

    def __init__(
        self,
        archive: Make,
        log: Callable[[Level, bool], Awaitable[bytes]],
        keep: Callable[[Upload, bytes], Awaitable[Kept]],
    ) -> None:
        """`archive` and `log` make archives; `keep` is store/uploads.py's."""
        self._archive = archive
        self._log = log
        self._keep = keep

    def verbs(self) -> list[Verb[Any]]:
        """What can be ordered."""
        return [
            again(
                "log.upload",
                "Send the log that is kept, as an archive.",
                LogUpload,
                self._log_upload,
                "operate",
                LANE,
                MAKE_S,
            ),
            again(
                "support.upload",
                "Send state, configuration, history and log as an archive, secrets masked.",
                NoArgs,
                self._support_upload,
                "admin",
                LANE,
                MAKE_S,
            ),
        ]

    async def _log_upload(self, args: LogUpload, call: Call) -> Kept:
        return await self._upload("log", lambda: self._log(args.level, args.journal), call)

    async def _support_upload(self, _: NoArgs, call: Call) -> Kept:
        return await self._upload("support", self._archive, call)

    async def _upload(self, what: Literal["log", "support"], make: Make, call: Call) -> Kept:
        if call.step:
            return kept(call.step)
        await call.tell(0.0, "the archive is being made")
        content = await make()
        name = f"{what}-{call.id.replace(':', '-')}.tar.gz"
        digest = hashlib.sha256(content).hexdigest()
        return await self._keep(Upload(what, name, digest, len(content), call.id), content)
