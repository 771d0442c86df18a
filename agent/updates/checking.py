"""What the agent and the process that checks metadata say to each other: JSON, a line each.

agent  -> child   Order, then an Arrival for each Want
child  -> agent   Want, as often as it needs a file; at last Checked or Refused
"""

from typing import Any

from msgspec import Struct

from agent.updates.fetched import NotFetched, Reason

LINE_BYTES_MAX = 8 << 20  # of a list of TARGETS_MAX targets, generously
TARGETS_MAX = 500  # that are listed; any can be named


class Order(Struct, frozen=True, kw_only=True):
    """Believe `root_file` first; keep what is learned in `folder`; judge expiry by `at_s`, seconds
    since 1970. `target` is looked up; with `lists` all that the top role signs are told."""

    root_file: str
    folder: str
    at_s: float
    target: str = ""
    lists: bool = False


class Want(Struct, frozen=True, tag="want"):
    """A file of the repository, and how much of it may be read."""

    path: str
    bytes_max: int


class Arrival(Struct, frozen=True):
    """The file lies at `here`; or the repository has none (`absent`)."""

    here: str = ""
    absent: bool = False


class Target(Struct, frozen=True, kw_only=True):
    """What is signed of one file."""

    path: str
    size_bytes: int
    sha256: str
    custom: dict[str, Any] = {}


class Checked(Struct, frozen=True, kw_only=True, tag="checked"):
    """What is believed now: versions and expiry (RFC 3339) of each role, and the targets."""

    versions: dict[str, int]
    expires: dict[str, str]
    targets: list[Target] = []
    unlisted: int = 0  # targets there are beside these


class Refused(Struct, frozen=True, kw_only=True, tag="refused"):
    """Why nothing is believed."""

    reason: Reason
    message: str
    hint: str

    def error(self) -> NotFetched:
        """As it is raised."""
        return NotFetched(self.reason, self.message, self.hint)


Said = Want | Checked | Refused
