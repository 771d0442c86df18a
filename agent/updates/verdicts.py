"""What it means when tuf refuses, in our words: by the kind of error, and by what was offered."""

import json
from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from tuf.api import exceptions
from tuf.api.serialization import DeserializationError

from agent.updates.fetched import NotFetched
from agent.updates.marks import older
from agent.words import quoted

ASK_FLEET = "tell whoever keeps the repository: `holdfast-fleet updates status` says what is wrong"


class Offered(Struct, frozen=True):
    """The last file that came."""

    path: str = ""
    data: bytes = b""

    @property
    def role(self) -> str:
        """Of which role it claims to be, by its name."""
        name = self.path.rpartition("/")[2].removesuffix(".json")
        return name.partition(".")[2] or name


def verdict(error: Exception, offered: Offered, known: Mapping[str, int]) -> NotFetched:
    """The refusal that an error of tuf's stands for, where these versions were trusted before."""
    where, said = offered.path, said_by(error)
    match error:
        case exceptions.DownloadLengthMismatchError():
            return NotFetched("too_long", said, "the server sends what it should not; look at it")
        case exceptions.DownloadHTTPError():
            return NotFetched(
                "unreachable",
                f"the source has no whole repository: {said}",
                "check updates.urls: the folder above `metadata` and `targets` is meant",
            )
        case exceptions.ExpiredMetadataError():
            return NotFetched(
                "expired",
                f"{said}; nobody vouches for it any more",
                "sign anew: holdfast-fleet updates publish; if it was, the source is an old copy",
            )
        case exceptions.UnsignedMetadataError():
            return NotFetched(
                "bad_signature",
                f"{where}: {said}",
                "it is damaged, or not of this fleet: check updates.root_file, and the repository",
            )
        case exceptions.BadVersionNumberError():
            return _misfit(where, said, offered, known)
        case exceptions.LengthOrHashMismatchError():
            return _mixed(where, said)
        case _ if "missing info for" in said:  # a snapshot that has lost a role
            return NotFetched("rollback", f"{where}: {said}", ASK_FLEET)
        case _:
            return NotFetched("unreadable", f"{where}: {said}", ASK_FLEET)


def said_by(error: Exception) -> str:
    """tuf says of bad JSON only that it is; the error behind that one says why."""
    if isinstance(error, DeserializationError) and error.__cause__:
        error = error.__cause__  # type: ignore[assignment]
    words = str(error) or type(error).__name__
    return quoted(words.encode(errors="replace").decode())  # JSON may hold what is no text


def _misfit(where: str, said: str, offered: Offered, known: Mapping[str, int]) -> NotFetched:
    """A version that is not the one expected: one from the past, or one of another time.

    What was offered is signed, or tuf would have said so before it looked at the version.
    """
    for role, version in _versions(offered):
        if version < known.get(role, 0):
            return older(role, version, known[role])
    return _mixed(where, said)


def _mixed(where: str, said: str) -> NotFetched:
    return NotFetched(
        "mix_and_match",
        f"{where}: does not belong to the rest: {said}",
        "try again: somebody may be writing it now; if it stays so, two of its states are mixed",
    )


def _versions(offered: Offered) -> list[tuple[str, int]]:
    """The version of what was offered, and those that it vouches for."""
    try:
        signed: dict[str, Any] = json.loads(offered.data)["signed"]
        own = [(offered.role, int(signed["version"]))]
        meta = signed.get("meta", {})
        named = [(name.removesuffix(".json"), int(one["version"])) for name, one in meta.items()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
    return own + named
