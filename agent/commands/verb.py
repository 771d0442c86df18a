"""One command of the catalogue: what it takes, who may order it, what it does.

A verb is a record; the catalogue (catalogue.py) is all of them. Its handler is called once for an
id. It answers with what becomes the result (anything that JSON can say, RESULT_BYTES_MAX at most),
or raises HoldfastError, whose message and hint become those of the failure.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from agent.errors import NotNow
from agent.forms import Scope

A = TypeVar("A", bound=Struct)


IsOpen = Callable[[str], Awaitable[bool]]
"""Whether the command of this id has not ended here (store/journal.py)."""


class NoArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """A command that takes nothing."""


class Call(Protocol):
    """The order at hand, as its handler sees it."""

    @property
    def id(self) -> str:
        """The command's."""

    @property
    def who(self) -> str:
        """Which command, by which door and whose: a label for what is written down of it."""

    @property
    def step(self) -> str:
        """What the handler noted last, also before a crash or a reboot; '' at first."""

    async def note(self, step: str) -> None:
        """Keep a step; returns when it is durable, however long the store cannot. What comes after
        it may rely on it."""

    async def tell(self, progress: float, message: str = "") -> None:
        """How far it is, a share; told to whoever waits, at most once a second."""


class Verb(NamedTuple, Generic[A]):
    """A command.

    `args` is a frozen Struct that forbids unknown fields; its docstring says what they are.
    `scope` is what a local caller must hold. `lane`: those of one lane run one after the other, in
    the order in which they came; '' waits for nobody. `resume` goes on with one that a crash or a
    reboot has broken off, from `call.step`; without it such a command is told as interrupted.
    `grave`: it can take the device out of service, and is the first that wants a signature.
    `foreign` tells of args the place that they would have the device ask, where the configuration
    names no such ('': none): that is for who stands before the device (trust.py).
    `about` names the command that one is about: it is for whoever may order that one, in place of
    `scope`, and it waits for none of those that run.
    """

    name: str
    summary: str
    args: type[A]
    run: Callable[[A, Call], Awaitable[Any]]
    scope: Scope = "operate"
    lane: str = ""
    timeout_s: float = 60.0
    resume: Callable[[A, Call], Awaitable[Any]] | None = None
    grave: bool = False
    foreign: Callable[[A], str] | None = None
    about: Callable[[A], str] | None = None


def not_ended(command: str | None) -> NotNow:
    """There is nothing to take back of a command, and there may be yet."""
    return NotNow(
        f"{command} has not ended here: what it brings is to be seen", "order it again when it has"
    )


def again(
    name: str,
    summary: str,
    args: type[A],
    run: Callable[[A, Call], Awaitable[Any]],
    scope: Scope = "operate",
    lane: str = "",
    timeout_s: float = 60.0,
    *,
    grave: bool = False,
) -> Verb[A]:
    """A verb that is simply called again after a crash: it says how things are to be."""
    return Verb(name, summary, args, run, scope, lane, timeout_s, run, grave)
