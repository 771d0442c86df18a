"""What an order to the models needs from outside, and what it says in the end."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from agent.errors import ModelError
from agent.updates.trials import Seen, Trial

At = (
    Literal["", "fetching", "unpacking", "placing", "placed"]
    | Literal["activating", "rolling_back", "removing"]
)
Told = Callable[[float, str], Awaitable[None]]


class Step(Struct, frozen=True, omit_defaults=True):
    """How far an order was, and what it had found out by then; JSON in the journal.

    `former` served when it began; `fresh`: the version was not there before; `proved`: it has shown
    what it must.
    """

    at: At = ""
    name: str = ""
    version: int = 0
    former: int | None = None
    fresh: bool = False
    proved: bool = False

    def text(self) -> str:
        """As it is noted."""
        return msgspec.json.encode(self).decode()


def step_of(text: str) -> Step:
    """As it was noted; '' is the first. Raises ModelError for what nobody here has noted."""
    try:
        return msgspec.json.decode(text, type=Step) if text else Step()
    except msgspec.MsgspecError as error:
        raise ModelError(f"no step of an order to the models: {text[:80]!r}") from error


class Order(Protocol):
    """A command at hand; agent/commands/verb.py says more."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def step(self) -> str: ...  # noqa: D102
    async def note(self, step: str) -> None: ...  # noqa: D102
    async def tell(self, progress: float, message: str = "") -> None: ...  # noqa: D102


class Fetched(Protocol):
    """A file that is here, whole, and signed for."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102


class Content(Protocol):
    """Who fetches what the fleet publishes."""

    async def fetch(self, target: str, told: Told, source: str = "") -> Fetched:
        """The target, checked; at once where it is here already. Raises HoldfastError."""

    async def drop(self, fetched: Any) -> None:
        """It is installed, or will not be."""

    def foreign(self, source: str) -> str:
        """The source, where it is none of those that are configured; else ''."""


class Origin(Struct, frozen=True):
    """Where a version is from: a `target` of the fleet's repository (`source`: a folder or URL in
    place of the configured ones), or the file `path` below the drop folder, of this digest."""

    target: str = ""
    source: str = ""
    path: str = ""
    sha256: str = ""


class Outcome(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What an order did.

    `installed`: the version was not there before. `proved`: it has shown what it must, in a process
    of its own. `removed`: older versions that went for it. `former` served until now. `seen` and
    `before` are what calls to it, and to the former version, came to. `why` nothing was done.
    """

    name: str = ""
    version: int = 0
    installed: bool = False
    proved: bool = False
    removed: list[int] = []
    former: int | None = None
    probation: str = ""
    seen: Seen | None = None
    before: Seen | None = None
    why: str = ""


class Row(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A version on the disk. `former`: a rollback leads to it; `error`: why it cannot be read."""

    name: str
    version: int
    serves: bool = False
    former: bool = False
    probation: str = ""
    size_bytes: int = 0
    error: str = ""


class Rows(Struct, frozen=True):
    """The versions on the disk; `more` are not shown."""

    models: list[Row]
    more: int = 0


def judged(trial: Trial) -> Outcome:
    """What a probation came to. Raises ModelError where the version does not serve for good."""
    label = f"{trial.name}/{trial.version}"
    if trial.state == "passed":
        why = f"passed: {trial.why}" if trial.why else "passed"
        return Outcome(
            name=trial.name,
            version=trial.version,
            former=trial.former,
            probation=why,
            seen=trial.seen,
            before=trial.before,
        )
    said = {
        "taken_back": f"taken back: {label}: {trial.why}; {trial.former} serves again",
        "kept": f"not taken back: {label} serves on: {trial.why}",
        "overtaken": f"overtaken: {label}: {trial.why}",
    }[trial.state]
    raise ModelError(said, "holdfast models ls, and the conditions of the device")
