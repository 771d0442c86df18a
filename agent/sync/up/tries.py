"""Which records do not get through although others do, and when one of them is given up.

Limits: up to SUSPECTS_MAX spans are suspects, up to MARKS_MAX are on their way to be; beyond that
the tries of further ones are not counted.

A try fails when the connection ends before the broker has answered the message, or when it is
answered and others of its stream that went later are acknowledged, and it is not (refused by the
broker, swallowed, lost). After `tries_max` of them its span is a suspect: it is held back, all else
goes on, and it is sent alone, now and then.

Alone it is divided when it fails, until single records are left. A single record is dead when it
failed alone `tries_max` times, and each time it was the record's fault as far as can be seen:

- others got through since its last try, and of its own stream some since it is a suspect; else the
  whole topic may be refused, or everything be down;
- and where the connection ended: it had been up CALM times as long before the record went out as
  it was up with it, and never ended without it in between. A bad network ends connections at any
  time: by chance all in these moments it would (1 / (CALM + 1)) ** tries_max of the times, and one
  end elsewhere begins the count anew. So a network makes no dead letter, however bad it is.
"""

from collections.abc import Callable, Iterable
from typing import Literal

from msgspec import Struct

from agent.records import Range
from agent.store.outbox import Name
from agent.sync.up.spans import meet, without

SUSPECTS_MAX = 64
MARKS_MAX = 256
CALM = 20.0
LONG = 4  # times the patience: for no longer a try waits for a connection that lasts
SPACING_S_MAX = 600.0

Verdict = Literal["again", "divide", "dead"]


class Suspect(Struct, eq=False):
    """A span that is held back. `breaks` and `fails` are its tries alone that count."""

    name: Name
    span: Range
    cause: str
    next_at: float  # monotonic
    spacing_s: float
    breaks: int = 0
    fails: int = 0
    seen: int = 0  # how many parcels had got through at its last try
    calm_s: float = 0.0  # a connection should have been up for so long before the next try
    vouched: bool = False  # something else of its stream got through since it is a suspect
    is_out: bool = False


class Tries:
    """Pure; times are monotonic seconds. The caller holds back, sends, lets go and buries."""

    def __init__(self, tries_max: int, patience_s: float) -> None:
        self._tries_max = tries_max
        self._patience_s = patience_s
        self._marks: dict[Name, list[tuple[Range, int]]] = {}
        self._suspects: list[Suspect] = []
        self._through = 0

    @property
    def suspects(self) -> list[Suspect]:
        """All of them."""
        return list(self._suspects)

    def failed(self, name: Name, span: Range, cause: str, now: float) -> bool:
        """A try failed, among others; whether the span is a suspect from now on: hold it back."""
        marks = self._marks.get(name, [])
        count = 1 + max((tries for one, tries in marks if meet(one, span)), default=0)
        self._unmark(name, [span])
        if count >= self._tries_max and len(self._suspects) < SUSPECTS_MAX:
            self._suspect(name, span, cause, now)
            return True
        if sum(map(len, self._marks.values())) < MARKS_MAX:
            self._marks.setdefault(name, []).append((span, min(count, self._tries_max)))
        return False

    def broke(self, unanswered: Iterable[tuple[Name, Range]], cause: str, now: float) -> list[int]:
        """The connection ended, and no suspect was alone with it; which of these to hold back."""
        for suspect in self._suspects:
            suspect.breaks = 0  # here is a reason that is not the suspect's
        return [
            number
            for number, (name, span) in enumerate(unanswered)
            if self.failed(name, span, cause, now)
        ]

    def through(
        self, name: Name, known: Callable[[Range], list[Range]], got: list[Range], now: float
    ) -> list[Range]:
        """These spans of a stream `got` through; what is a suspect no more: let it go.

        `known` says what of a span the far side does not know.
        """
        self._through += len(got)
        self._unmark(name, got)
        free: list[Range] = []
        for suspect in [one for one in self._suspects if one.name == name]:
            if any(not meet(span, suspect.span) for span in got):
                suspect.vouched = True
                suspect.spacing_s = self._patience_s
                suspect.next_at = min(suspect.next_at, now + self._patience_s)
            left = known(suspect.span)
            if left != [suspect.span]:
                free += without(suspect.span, left)
                self.divide(suspect, left)
        return free

    def due(self, now: float, up_s: float) -> Suspect | None:
        """The suspect whose turn it is to be sent alone, on a connection that is up for `up_s`.

        Where none ever is up for as long as a try that counts needs, it goes all the same.
        """
        long_s = LONG * self._patience_s
        ready = [
            one
            for one in self._suspects
            if not one.is_out
            and one.next_at <= now
            and (up_s >= one.calm_s or now - one.next_at >= long_s)
        ]
        return min(ready, key=lambda one: one.next_at, default=None)

    def alone_broke(
        self, suspect: Suspect, up_s: float, took_s: float, *, single: bool, now: float
    ) -> Verdict:
        """The connection ended `took_s` after it went out alone; before it was up for `up_s`."""
        suspect.calm_s = CALM * took_s
        calm = up_s >= suspect.calm_s
        counts = calm and self._others_got_through(suspect)
        suspect.breaks += counts and single
        self._rest(suspect, now, longer=calm and not counts)
        return self._verdict(suspect) if single else self._division(fair=calm)

    def alone_failed(
        self, suspect: Suspect, *, overtaken: bool, single: bool, now: float
    ) -> Verdict:
        """It went out alone, and was refused or is not acknowledged."""
        counts = overtaken and self._others_got_through(suspect)
        suspect.fails += counts and single
        self._rest(suspect, now, longer=not counts)
        return self._verdict(suspect) if single else self._division(fair=True)

    def divide(self, suspect: Suspect, spans: Iterable[Range]) -> None:
        """These are suspects in its place."""
        self.forget(suspect)
        for span in spans:
            self._suspects.append(
                Suspect(
                    *(suspect.name, span, suspect.cause, suspect.next_at, self._patience_s),
                    seen=suspect.seen,
                    vouched=suspect.vouched,
                )
            )

    def forget(self, suspect: Suspect) -> None:
        """It is no suspect any more: it is dead, or nothing of it is left."""
        if suspect in self._suspects:
            self._suspects.remove(suspect)

    def ended(self) -> None:
        """The connection ended: nothing is out."""
        for suspect in self._suspects:
            suspect.is_out = False

    def _others_got_through(self, suspect: Suspect) -> bool:
        return self._through > suspect.seen

    def _rest(self, suspect: Suspect, now: float, *, longer: bool) -> None:
        """It is sent again later, and later still while nothing else gets through either."""
        suspect.is_out, suspect.seen = False, self._through
        spacing_s = 2 * suspect.spacing_s if longer else self._patience_s
        suspect.spacing_s = min(spacing_s, SPACING_S_MAX)
        suspect.next_at = now + suspect.spacing_s

    def _division(self, *, fair: bool) -> Verdict:
        return "divide" if fair and len(self._suspects) < SUSPECTS_MAX else "again"

    def _verdict(self, suspect: Suspect) -> Verdict:
        tries = suspect.breaks + suspect.fails
        return "dead" if tries >= self._tries_max and suspect.vouched else "again"

    def _suspect(self, name: Name, span: Range, cause: str, now: float) -> None:
        self._suspects.append(
            Suspect(name, span, cause, now + self._patience_s, self._patience_s, seen=self._through)
        )

    def _unmark(self, name: Name, spans: list[Range]) -> None:
        marks = [
            (left, tries)
            for one, tries in self._marks.pop(name, [])
            for left in without(one, spans)
        ]
        if marks:
            self._marks[name] = marks
