"""The highest versions of metadata that this device has believed: nothing older is, ever after.

tuf's own copies of the metadata say it too, but a power cut may take those, and tuf then begins
anew without a word.

Format  : JSON: the version of each role, and by whose keys it was signed.
Recovery: replaced as a whole, before anything that the metadata say is acted on. When the keys of a
          role that signs versions have changed, by a root that was believed, all but the root's
          mark begin anew: so a repository recovers whose online keys were stolen to sign a version
          that nobody can go beyond (a fast-forward attack; TUF specification 1.0.33, 5.3.11).
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from agent import whole_file
from agent.updates.fetched import NotFetched

ROOT = "root"


class _Kept(Struct, frozen=True):
    versions: dict[str, int] = {}
    keys: list[str] = []


class Marks:
    """Of one trusted beginning; another root file has marks of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = self._read()

    def version(self, role: str) -> int:
        """The highest that was believed; 0: none was."""
        return self._kept.versions.get(role, 0)

    def differ(self, versions: Mapping[str, int], keys: list[str]) -> bool:
        """Whether these are news."""
        return _Kept(dict(versions), keys) != self._kept

    def keep(self, versions: Mapping[str, int], keys: list[str]) -> None:
        """These are believed now. Raises NotFetched for one that is older, OSError."""
        known = self._kept.versions
        if keys != self._kept.keys:
            known = {ROOT: known.get(ROOT, 0)}
        for role, version in versions.items():
            if version < known.get(role, 0):
                raise older(role, version, known[role])
        self._kept = _Kept(dict(versions), keys)
        whole_file.replace(self._path, msgspec.json.encode(self._kept))

    def _read(self) -> _Kept:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return _Kept()
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _Kept()  # the disk's damage must not be the end of all updates


def older(role: str, version: int, known: int) -> NotFetched:
    """The refusal."""
    return NotFetched(
        "rollback",
        f"the repository offers {role} {version}, and this device has seen {known}",
        "if it is a stick or a mirror: copy the repository anew; else restore it from a newer copy",
    )
