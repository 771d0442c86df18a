"""What a rollout does next: a function of what is known of it, and of nothing else."""

from msgspec import Struct

from fleet.control.plan import Plan
from fleet.control.words import BAD, MISSED

US = 1_000_000


class Count(Struct):
    """Members. `ready` can be given the command, `away` cannot, for they are not there.

    `in_flight` have it and owe a word; `gone` have it, said nothing, and are not there. `good`,
    `bad` (late ones too) and `missed` (it came too late for them) have ended; of `good` and `bad`,
    `new_good` and `new_bad` since the rollout was last resumed.
    """

    ready: int = 0
    away: int = 0
    in_flight: int = 0
    gone: int = 0
    good: int = 0
    bad: int = 0
    missed: int = 0
    new_good: int = 0
    new_bad: int = 0

    @property
    def size(self) -> int:
        """All of them."""
        return self.ready + self.away + self.in_flight + self.gone + self.ended

    @property
    def ended(self) -> int:
        """Those that need no more."""
        return self.good + self.bad + self.missed

    def add(self, state: str, count: int, *, late: bool, online: bool, new: bool) -> None:
        """So many members whose command is in this state."""
        if state == "succeeded":
            self.good += count
            self.new_good += count * new
        elif state in BAD or (late and state not in MISSED):
            self.bad += count
            self.new_bad += count * new
        elif state in MISSED:
            self.missed += count
        elif state == "planned":
            self.ready += count * online
            self.away += count * (not online)
        elif state in ("waiting", "sent") and not online:
            self.gone += count
        else:
            self.in_flight += count


class Standing(Struct, frozen=True):
    """Where a rollout is. `step` has the members of the present step alone, `within` those up to
    its end, `whole` all. `undone` are those whom the way back is still to be sent for having
    failed, `undone_all` for having it at all."""

    state: str
    step_number: int
    settled_us: int | None
    step: Count
    within: Count
    whole: Count
    undone: int = 0
    undone_all: int = 0


class Release(Struct, frozen=True):
    """Give the command to the next so many that are ready."""

    count: int


class Pause(Struct, frozen=True):
    """Stop, and say why."""

    cause: str


class Settle(Struct, frozen=True):
    """The step is done; it soaks from now on."""


class Advance(Struct, frozen=True):
    """On to the next step."""


class Finish(Struct, frozen=True):
    """Nobody is left."""


class TakeBack(Struct, frozen=True):
    """Send the way back to those that failed, or to `all` that have it."""

    all: bool


Action = Release | Pause | Settle | Advance | Finish | TakeBack


def decide(plan: Plan, at: Standing, now_us: int) -> list[Action]:
    """What is to be done now; when it is done, ask again."""
    actions: list[Action] = []
    if at.undone and plan.back_on in ("failed", "both"):
        actions.append(TakeBack(all=False))
    if at.state == "aborted" and at.undone_all and plan.back_on in ("abort", "both"):
        actions.append(TakeBack(all=True))
    if at.state != "running":
        return actions
    if cause := _too_many(plan, at):
        return [*actions, Pause(cause)]
    room = min(plan.in_flight_max - at.whole.in_flight, at.within.ready)
    if room > 0:
        actions.append(Release(room))
    if not at.within.ready and not at.within.in_flight:
        actions += _at_the_end_of_a_step(plan, at, now_us)
    return actions


def _too_many(plan: Plan, at: Standing) -> str:
    """Why it should pause, if it should."""
    for of, count in (("this step", at.step), ("all", at.whole)):
        ended = count.new_good + count.new_bad
        if ended >= plan.samples_min and count.new_bad > plan.failures_max * ended:
            return f"{count.new_bad} of {ended} in {of} failed, more than {plan.failures_max:.2%}"
    return ""


def _at_the_end_of_a_step(plan: Plan, at: Standing, now_us: int) -> list[Action]:
    """Nobody who is there is left in it."""
    if at.whole.ended == at.whole.size:
        return [Finish()]
    if at.step_number + 1 >= len(plan.bounds):
        return []  # the others are away
    if at.settled_us is None:
        enough = at.step.ended > 0 and at.step.ended >= plan.quorum * at.step.size
        return [Settle()] if enough else []
    return [Advance()] if now_us >= at.settled_us + plan.soak_s * US else []
