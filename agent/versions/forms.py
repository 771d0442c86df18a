"""What is remembered of the versions of a configuration. Pure: each change is another Book.

    chosen      it is to be in force from now on: what is asked next, and started next, is this one
    started     the agent began on it, and it is on trial still
    in_force    all of it holds: its sections were changed, or the agent has begun on it
    confirmed   it stays
    taken_back  another one is in its place: by itself, or because somebody ordered it

A version is on trial from `chosen` until it is confirmed or taken back.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from agent.errors import NotThere

STEPS_KEPT = 200
RESTARTS_KEPT = 16
WORDS_CHARS_MAX = 400
Number = Annotated[int, Meta(ge=0, le=10**9)]
Count = Annotated[int, Meta(ge=0, le=10**6)]
Confirm = Literal["auto", "manual", "start"]
State = Literal["chosen", "started", "in_force", "confirmed", "taken_back"]


class Version(Struct, frozen=True):
    """A document that is kept. `digest` is its SHA-256, `who` and `why` are labels.

    `origin` says where it came from: the `file` of --config, an `order`, or an order's `patch`.
    """

    number: Number
    digest: str
    size_bytes: Count
    origin: Literal["file", "order", "patch"]
    who: str = ""
    why: str = ""
    at_us: int = 0


class Change(Struct, frozen=True):
    """What an order changes: sections, each with why it takes a restart ("": it takes none), and
    what the new document has no more."""

    sections: dict[str, str] = {}
    lost: str = ""


NO_CHANGE = Change()


class Step(Struct, frozen=True):
    """What became of a version, and when (a wall label); `order` is whose doing it was, and
    `change`, where an order has chosen it, what that changes."""

    number: Number
    state: State
    at_us: int
    order: str = ""
    why: str = ""
    change: Change = NO_CHANGE


class Trial(Struct, frozen=True):
    """The live version is to show that it is good, else `former` comes back.

    `confirm`: `auto`: health and link are judged after `confirm_s`; `manual`: somebody confirms it
    until then; `start`: it is good once the agent runs on it. `starts` have come to nothing so far.
    `link_was_up`, and `held` (name and subject of conditions), are of the moment before it.
    """

    former: Number
    confirm: Confirm
    confirm_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    order: str = ""
    link_was_up: bool = False
    held: tuple[tuple[str, str], ...] = ()
    starts: Count = 0


class Restart(Struct, frozen=True):
    """The agent was restarted for a version, at `at_s` of a boot's monotonic clock."""

    boot: str
    at_s: float


class Book(Struct, frozen=True):
    """All that is remembered. `live` is in force, or will be at the next start; 0: none yet.

    `file_digest` is that of the file of --config as it was seen last; `next` is the number of the
    next version. `taken_back` is the last version that was taken back by itself, until another one
    is confirmed.
    """

    live: Number = 0
    next: Number = 1
    file_digest: str = ""
    versions: tuple[Version, ...] = ()
    trial: Trial | None = None
    steps: tuple[Step, ...] = ()
    restarts: tuple[Restart, ...] = ()
    taken_back: Step | None = None

    @property
    def confirmed(self) -> int:
        """What a trial would lead back to; without one, the live version."""
        return self.trial.former if self.trial else self.live

    def version(self, number: int) -> Version:
        """Raises NotThere."""
        found = next((one for one in self.versions if one.number == number), None)
        if found is None:
            known = ", ".join(str(one.number) for one in self.versions) or "none"
            raise NotThere(f"no version {number} is kept", f"kept are {known}")
        return found

    def chosen_by(self, order: str) -> int | None:
        """The version that an order has chosen; None: it has chosen none."""
        of = [s.number for s in self.steps if s.order == order and s.state == "chosen"]
        return of[-1] if of else None

    def previous(self, order: str = "") -> int:
        """The version to go back to: of a trial its former, else what was confirmed before; and
        with `order`, before that order has chosen the live one.

        Raises NotThere.
        """
        if self.trial:
            return self.trial.former
        kept = {one.number for one in self.versions}
        ours = [at for at, s in enumerate(self.steps) if s.order == order and s.state == "chosen"]
        for step in reversed(self.steps[: ours[-1]] if order and ours else self.steps):
            if step.state == "confirmed" and step.number != self.live and step.number in kept:
                return step.number
        raise NotThere("no version was confirmed before the live one", "holdfast config versions")

    def ended(self, order: str) -> Step | None:
        """The last word on what an order had chosen; None: there is none yet."""
        of = [s for s in self.steps if s.order == order and s.state in ("confirmed", "taken_back")]
        return of[-1] if of else None

    def began(self, order: str) -> bool:
        """Whether an order has chosen a version."""
        return any(one.order == order and one.state == "chosen" for one in self.steps)

    def noted(
        self,
        state: State,
        at_us: int,
        order: str = "",
        why: str = "",
        change: Change = NO_CHANGE,
    ) -> "Book":
        """With a step of the live version."""
        step = Step(self.live, state, at_us, order, why[:WORDS_CHARS_MAX], change)
        return replace(self, steps=(*self.steps, step)[-STEPS_KEPT:])

    def choosing(
        self,
        number: int,
        trial: Trial | None,
        at_us: int,
        order: str,
        why: str,
        change: Change = NO_CHANGE,
    ) -> "Book":
        """This version in the place of the live one, whose own trial is over with that."""
        book = self
        if self.trial:
            word = f"version {number} was chosen in its place"
            book = self.noted("taken_back", at_us, self.trial.order, word)
        book = replace(book, live=number, trial=trial)
        return book.noted("chosen", at_us, order, why, change)

    def confirming(self, at_us: int, why: str) -> "Book":
        """The live version stays."""
        order = self.trial.order if self.trial else ""
        book = replace(self, trial=None, taken_back=None)
        return book.noted("confirmed", at_us, order, why)

    def taking_back(self, number: int, at_us: int, why: str) -> "Book":
        """The live version is no good: this one comes back."""
        book = self.noted("taken_back", at_us, self.trial.order if self.trial else "", why)
        back = replace(book, live=number, trial=None, taken_back=book.steps[-1])
        return back.noted("confirmed", at_us, "", f"version {self.live} was taken back")
