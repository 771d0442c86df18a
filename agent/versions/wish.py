"""What an order wants the configuration to be, checked as a whole."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct

from agent import config_file
from agent.config import Config
from agent.errors import NotNow
from agent.versions.folder import digest
from agent.versions.forms import Confirm
from agent.versions.kept import Kept
from agent.versions.plan import check_pinned, patched

CONFIRM_S, CONFIRM_S_MAX = 120.0, 3600
Window = Annotated[float, Meta(ge=1, le=CONFIRM_S_MAX)]
LOST = "comments and layout: a patch is of the values alone"


class Wish(Struct, frozen=True, kw_only=True):
    """A document, or a merge patch of the live one; its trial, and who wants it.

    `live`: only if this version is the live one. `order` names the order, `who` and `why` are
    labels.
    """

    document: bytes | None = None
    patch: dict[str, Any] | None = None
    live: int | None = None
    confirm: Confirm = "auto"
    confirm_s: float = CONFIRM_S
    order: str = ""
    who: str = ""
    why: str = ""

    @property
    def origin(self) -> Literal["order", "patch"]:
        """What its version is made of."""
        return "order" if self.patch is None else "patch"


class Wished(NamedTuple):
    """The document, what it says, and what of the live one is lost in it; `same` as that it is."""

    document: bytes
    settings: Config
    lost: str
    same: bool


def read(wish: Wish, kept: Kept, running: Config) -> Wished:
    """Raises HoldfastError: ConfigError with line and key, NotNow where another one is live."""
    live = kept.book.live
    if wish.live not in (None, live):
        raise NotNow(f"version {live} is live, not {wish.live}", "look at what has changed")
    document, lost = wish.document, ""
    if document is None:
        document, lost = patched(kept.document(live), wish.patch or {}, live), LOST
    settings = config_file.parse(document, Path("the document"))
    check_pinned(running, settings, kept.file)
    known = next((one.digest for one in kept.book.versions if one.number == live), "")
    return Wished(document, settings, lost, same=known == digest(document))
