"""Whether anybody at the broker reads results, and when all that nobody has is told again.

Pure judgement, on a clock that it asks. Each AGAIN_S there is a round. While nobody reads, a round
is one result, and the pause before the next one doubles up to AGAIN_S_MAX. It is over once somebody
reads anything, and with the next connection.
"""

from agent.clock import Clock

AGAIN_S = 60.0
AGAIN_S_MAX = 3600.0


class Readers:
    """`reads` is what the broker said last; None: nothing yet, since the last round began."""

    def __init__(self, clock: Clock) -> None:
        self.reads: bool | None = None
        self.again_s = AGAIN_S
        self._clock = clock
        self._due = clock.monotonic()

    @property
    def none(self) -> bool:
        """Nobody does, by the broker's last word."""
        return self.reads is False

    @property
    def left_s(self) -> float:
        """Until the next round; 0: it is due."""
        return max(0.0, self._due - self._clock.monotonic())

    def connected(self) -> None:
        """Another connection, maybe to another broker: a round is due."""
        self.reads, self.again_s, self._due = None, AGAIN_S, self._clock.monotonic()

    def ordered(self) -> None:
        """Somebody gave an order, and may come to read in a moment."""
        self.again_s = AGAIN_S
        self._due = min(self._due, self._clock.monotonic() + AGAIN_S)

    def begin(self) -> None:
        """A round begins."""
        if self.none:
            self.reads, self.again_s = None, min(2 * self.again_s, AGAIN_S_MAX)
        self._due = self._clock.monotonic() + self.again_s

    def heard(self, *, reads: bool) -> None:
        """The broker's word on a result."""
        now = self._clock.monotonic()
        if reads:
            self._due, self.again_s = (now if self.none else self._due), AGAIN_S
        elif not self.none and self.left_s:  # what is due has more to tell
            self._due = now + self.again_s
        self.reads = reads
