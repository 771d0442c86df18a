"""The GPU's time, shared out between the domains that run on it: one of them at a time.

A domain asks for a turn before it sends a batch to an instance whose execution provider is a GPU's,
and the turn ends with that instance's answer, or with the instance. Who goes next of those that
want: the most urgent class, then the earliest deadline; but a domain that is more than OVERDRAFT_S
ahead of its share (`gpu_share`; without one, by class) goes after all that are not. Shares are of
the time in which others wanted the GPU too: what nobody else wanted costs nothing, and what a
domain did not want is not saved up for it. So when all want all of it, each gets its share, none
starves, and the GPU is never idle while one wants it.

How long the most urgent wait: a batch is cut to as many rows as QUANTUM_S holds, by what rows cost
as measured, and none is sent ahead, so it is one batch. One that takes longer all the same (a
single row may: no run can be cut) is waited for no longer than QUANTUM_S by a more urgent domain
within its share: both run then, and the GPU divides itself between them. For all others a turn
lapses after `call_timeout_s`, when its instance is killed anyway.

The proof of a fresh instance (golden inputs) takes no turn. A domain on the CPU, and the only
domain on the GPU, wait for nobody.

Limits  : one seat for each domain, one turn for each of its instances.
Recovery: a turn ends with its instance, however that ends; a closed domain leaves its seat.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.inference.domains.work import Class

GPU = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})
QUANTUM_S = 0.1
OVERDRAFT_S = 0.25  # of GPU time, that urgency may take beyond the share
DEBT_S_MAX = 10.0  # what is beyond is forgiven
WEIGHTS = {Class.REALTIME: 0.7, Class.INTERACTIVE: 0.3, Class.BATCH: 0.1}
UNBOUNDED_S = math.inf


class Want(NamedTuple):
    """The most urgent batch that a domain could send now."""

    klass: Class
    deadline_s: float


class Turn(NamedTuple):
    """An instance at work."""

    klass: Class
    began_s: float


class Seat:
    """One domain's place at the lease."""

    def __init__(
        self,
        lease: "Lease",
        settings: Settings,
        want: Callable[[], Want | None],
        wake: Callable[[], None],
    ) -> None:
        """`want` says what would be sent now; `wake` has the domain ask again, soon."""
        self.used_s = 0.0  # of the GPU; what two use at once is halved
        self.virtual_s = 0.0  # used by weight, and never behind those that wanted all along
        self.turns: dict[object, Turn] = {}
        self.want = want
        self.wake = wake
        self._lease = lease
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Other settings hold from now on."""
        self.weight = settings.gpu_share or WEIGHTS[Class[settings.class_.upper()]]
        self.lapse_s = settings.call_timeout_s

    def shares(self, ep: str) -> bool:
        """Whether time on this execution provider is shared out."""
        return ep in self._lease.eps

    def turn(self, ep: str, *, ahead: bool) -> float:
        """For how many seconds a batch may be sent to an instance on `ep`; 0: not now.

        `ahead`: the instance has one already. After a 0 the domain is woken when it may be its
        turn; to ask again at times does no harm.
        """
        if ep not in self._lease.eps:
            self._lease.left(self)
            return UNBOUNDED_S
        return self._lease.turn(self, ahead=ahead)

    @property
    def waits(self) -> bool:
        """Whether what it would send now waits for the turn of another domain."""
        return self._lease.keeps(self)

    def began(self, ep: str, holder: object, klass: Class) -> None:
        """A batch was sent to `holder`, an instance on `ep`."""
        if ep in self._lease.eps:
            self._lease.look()
            self.turns.setdefault(holder, Turn(klass, self._lease.now_s))

    def over(self, holder: object) -> None:
        """`holder` has nothing to do any more, or is gone."""
        if holder in self.turns:
            self._lease.look()
            del self.turns[holder]
            self._lease.freed()

    def leave(self) -> None:
        """The domain is closed."""
        for holder in list(self.turns):
            self.over(holder)
        self._lease.left(self)


class Lease:
    """The turns of all domains on the GPU."""

    def __init__(self, clock: Clock, eps: frozenset[str] = GPU) -> None:
        """`eps` are the execution providers whose time is shared out."""
        self.eps = eps
        self.now_s = clock.monotonic()  # of the last look
        self._clock = clock
        self._seats: list[Seat] = []
        self._active: set[Seat] = set()  # those that had or wanted a turn at the last look
        self._floor_s = 0.0  # the virtual time of whoever of these is farthest behind

    def seat(
        self, settings: Settings, want: Callable[[], Want | None], wake: Callable[[], None]
    ) -> Seat:
        """A place for a domain; it is taken when the first turn is asked for."""
        return Seat(self, settings, want, wake)

    def turn(self, seat: Seat, *, ahead: bool) -> float:
        """As Seat.turn, of a seat whose instances run on the GPU."""
        if seat not in self._seats:
            self._seats.append(seat)
        if len(self._seats) == 1:
            return UNBOUNDED_S
        if ahead:
            return 0.0
        wants = self.look()
        best = min(wants, key=lambda one: self._rank(one, wants[one]), default=None)
        if best is None or not self._may(best, wants[best]):
            return 0.0
        if best is seat:
            return QUANTUM_S
        best.wake()
        return 0.0

    def keeps(self, seat: Seat) -> bool:
        """As Seat.waits."""
        want = seat.want() if seat in self._seats else None
        if want is None:
            return False
        self.look()
        return not self._may(seat, want)

    def left(self, seat: Seat) -> None:
        """It runs on the GPU no more."""
        if seat in self._seats:
            self._seats.remove(seat)
            self._active.discard(seat)
            self.freed()

    def freed(self) -> None:
        """Whoever waits may ask again."""
        if len(self._seats) > 1:
            for seat in self._seats:
                seat.wake()

    def look(self) -> dict[Seat, Want]:
        """Count the time since the last look; what is wanted now."""
        before_s, self.now_s = self.now_s, self._clock.monotonic()
        holders = [seat for seat in self._seats if seat.turns]
        for seat in holders:
            used_s = (self.now_s - before_s) / len(holders)
            seat.used_s += used_s
            seat.virtual_s += used_s / seat.weight
        if former := self._active.union(holders):
            self._floor_s = max(self._floor_s, min(seat.virtual_s for seat in former))
        wants = {seat: want for seat in self._seats if (want := seat.want())}
        self._active = {*holders, *wants}
        for seat in self._active - former:
            most_s = self._floor_s + DEBT_S_MAX / seat.weight
            seat.virtual_s = min(max(seat.virtual_s, self._floor_s), most_s)
        return wants

    def _ahead(self, seat: Seat) -> bool:
        """Whether it has had so much that its urgency does not count."""
        return (seat.virtual_s - self._floor_s) * seat.weight > OVERDRAFT_S

    def _rank(self, seat: Seat, want: Want) -> tuple[bool, float, float]:
        if self._ahead(seat):
            return True, seat.virtual_s, want.deadline_s
        return False, want.klass, want.deadline_s

    def _may(self, seat: Seat, want: Want) -> bool:
        """Whether no turn of another's keeps it waiting."""
        for other in self._seats:
            for turn in other.turns.values() if other is not seat else ():
                first = want.klass < turn.klass and not self._ahead(seat)
                lapses_s = turn.began_s + (QUANTUM_S if first else other.lapse_s)
                if self.now_s < lapses_s:
                    return False
        return True
