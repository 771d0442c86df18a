"""What a fetch gives to whoever installs it, and why it gives nothing.

Use: `fetched = await content.fetch("models/speech-4.tar", told)`, install `fetched.path`, then
`await content.drop(fetched)`. Calls wait for each other: one fetch at a time. The same call after a
crash goes on where the bytes on the disk end, and gives at once what is already there, checked.
"""

import errno
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

from msgspec import Struct

from agent.errors import HoldfastError
from agent.protocol.content import Kind

Told = Callable[[float, str], Awaitable[None]]  # a share of the whole, and a word: Call.tell
Reason = Literal[
    "not_set_up",  # no root file, or none that can be read
    "unreachable",  # no source answered
    "unreadable",  # what came is no metadata
    "bad_signature",  # too few valid signatures of the role's keys
    "rollback",  # older than what this device has seen
    "mix_and_match",  # metadata that do not belong together
    "expired",  # by a clock that is trusted, or by the last time that was
    "too_long",  # more bytes than the metadata allow
    "too_short",
    "bad_digest",  # the bytes are not those that were signed
    "no_target",  # the repository has no such target
    "other_device",  # it is for others
    "no_space",
    "too_large",  # more than updates.staging_bytes_max
    "too_slow",  # not in the time that it has
    "failed",  # the process that checks died, or the disk did
]


class Fetched(Struct, frozen=True, kw_only=True):
    """A file that is here, whole, and signed for; it is read-only, and the agent's own.

    `target` is its path in the repository, `path` where it lies here, until it is dropped or room
    is needed for another fetch. `custom` is all that was signed with it, as it was written there.
    `expiry_judged`: by a trusted clock; else only against the last time that was known to be good.
    """

    kind: Kind
    name: str
    version: str
    target: str
    path: str
    digest: str  # SHA-256, hexadecimal
    size_bytes: int
    custom: dict[str, Any] = {}
    expiry_judged: bool = True


class NotFetched(HoldfastError):
    """Content was refused or did not come; `reason` says it in a word, and begins the message."""

    def __init__(self, reason: Reason, message: str, hint: str) -> None:
        super().__init__(f"{reason}: {message}", hint)
        self.reason: Reason = reason


def disk_fault(error: OSError, where: object) -> NotFetched:
    """What a disk's refusal means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotFetched(
            "no_space",
            f"{error.filename or where}: the disk is full",
            "make room on the disk that the store lies on; what has come is kept",
        )
    return NotFetched(
        "failed",
        f"{error.filename or where}: {error.strerror or error}",
        "see `holdfast status` about the disk, and look at its cable and its age",
    )


class Fetcher(Protocol):
    """What installers need; `content.Content` is it, tests may give their own."""

    async def fetch(self, target: str, told: Told, source: str = "") -> Fetched:
        """The target, checked; `source` (a folder or URL) in place of the configured ones.

        Raises NotFetched.
        """

    async def drop(self, fetched: Fetched) -> None:
        """It is installed, or will not be: its file goes."""
