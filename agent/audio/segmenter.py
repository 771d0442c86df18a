"""Where speech begins and ends: speech probabilities and clean sound in, stretches of speech out.

Positions are samples from the start of the take. Probability k belongs to hop k; clean sound lags
by a hop. Nothing before `floor` is given out (again): it belongs to stretches already kept.
Who takes an open stretch's sound as it comes (`take`) bounds the memory by TAKE_S of sound, the
margin, the hangover, and what one call brings; else `length_s_max` does.
"""

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.config import Segments
from agent.records import RATE_HZ

NONE = -1  # of a position
TAKE_S = 10.0  # an open stretch's sound is taken in parts of at least this; most are shorter


class Stretch(Struct, frozen=True):
    """Clean sound [start, start + samples) that holds speech; `speech` is its mean probability.

    `pcm` is the end of it: what was not taken before. `begun` is where its speech began, which no
    two stretches share.
    """

    begun: int
    start: int
    samples: int
    pcm: NDArray[np.int16]
    speech: float


class Segmenter:
    """Follows one stream of sound. What it gives out does not depend on the size of the calls."""

    def __init__(
        self,
        rules: Segments,
        hop: int,
        judged: int = 0,
        clean: int = 0,
        floor: int = 0,
        spoken_until: int = NONE,
    ) -> None:
        """The next probability is of the hop at `judged`, the next clean sample that of `clean`.

        `spoken_until` is given when a stretch was cut at `floor` and goes on: where its speech
        had ended by then.
        """
        self.floor = floor
        self.spoken_until = spoken_until
        self._rules = rules
        self._hop = hop
        self._margin = round(rules.margin_s * RATE_HZ)
        self._hangover = round(rules.hangover_s * RATE_HZ)
        self._speech_min = round(rules.speech_s_min * RATE_HZ)
        self._length_max = round(rules.length_s_max * RATE_HZ)
        self._clean = np.zeros(0, np.int16)
        self._base = clean  # position of the first sample in _clean
        self._now = judged  # end of the last hop that was judged
        self._take_min = round(TAKE_S * RATE_HZ)
        self._opened = NONE  # where the open stretch's speech began
        self._start = 0  # where the open stretch begins
        self._taken = 0  # up to where its sound was taken
        self._last = 0  # end of its last hop of speech
        self._spoken = 0  # samples of speech in it, after the floor
        self._probability = 0.0  # the sum over its hops
        self._hops = 0

    @property
    def given(self) -> int:
        """The position behind the last clean sample."""
        return self._base + len(self._clean)

    @property
    def needed(self) -> int:
        """A segmenter that begins with the clean sample here gives out the same from now on."""
        return self._needed(self._opened if self._opened != NONE else self._now)

    @property
    def needed_later(self) -> int:
        """As `needed`, once the open stretch has ended."""
        return self._needed(self._now)

    @property
    def begun(self) -> int:
        """Where the open stretch's speech began; NONE: none is open."""
        return self._opened

    @property
    def ended(self) -> int:
        """Where the speech of the last stretch ended, or that of the open one so far."""
        return self._last

    def _needed(self, begin: int) -> int:
        return max(0, max(self.floor, begin - self._margin) - self._hop)

    def push(self, clean: NDArray[np.int16], speech: NDArray[np.float32]) -> list[Stretch]:
        """The next clean sound and probabilities; the stretches that ended with them."""
        self._clean = np.concatenate([self._clean, clean])
        found = [s for p in speech.tolist() if (s := self._judge(p)) is not None]
        self._let_go()
        return found

    def take(self) -> NDArray[np.int16]:
        """The next of the open stretch's sound, as far as it is sure to be in the stretch.

        Empty below TAKE_S. If the stretch is forgotten in the end, what was taken is, too.
        """
        begin = max(self._start, self._taken)
        end = min(self._last + self._margin, self._now - self._hop, self.given)
        if self._opened == NONE or end - begin < self._take_min:
            return np.zeros(0, np.int16)
        pcm = self._clean[begin - self._base : end - self._base].copy()
        self._taken = end
        self._let_go()
        return pcm

    def _let_go(self) -> None:
        """Hold only the sound that may still be asked for."""
        needed = self.needed
        if self._opened != NONE and self._taken > self._start:
            needed = min(self._taken, self.needed_later)
        keep_from = min(needed, self.given)
        if keep_from > self._base:
            self._clean = self._clean[keep_from - self._base :]
            self._base = keep_from

    def finish(self, end: int) -> list[Stretch]:
        """The take ended at position `end`: close what is open."""
        stretch = self._close(end) if self._opened != NONE else None
        self.floor = max(self.floor, end)
        return [stretch] if stretch else []

    def _judge(self, probability: float) -> Stretch | None:
        begin, self._now = self._now, self._now + self._hop
        if self._opened == NONE and not self._opens(begin, probability):
            return None
        if probability >= self._rules.close_probability:
            self._last = self._now
            self._spoken += max(0, self._now - max(begin, self.floor))
        self._probability += probability
        self._hops += 1
        complete = self._now - self._hop  # clean sound lags by a hop
        if self._now - max(self._opened - self._margin, self.floor) >= self._length_max:
            return self._cut(complete, probability)
        if self._now - self._last >= self._hangover:
            return self._close(complete)
        return None

    def _opens(self, begin: int, probability: float) -> bool:
        """Whether a stretch opens with the hop at `begin`."""
        goes_on = self.spoken_until != NONE
        if goes_on and begin < self.floor:
            return False  # of the part that was given out
        if not goes_on and probability < self._rules.open_probability:
            return False
        self._begin(max(begin, self.floor))
        self._last = self.spoken_until if goes_on else 0
        self._spoken = self._speech_min if goes_on else 0
        return True

    def _begin(self, opened: int) -> None:
        self._opened = opened
        self._start = max(opened - self._margin, self.floor, self._base)
        self._taken, self._probability, self._hops = 0, 0.0, 0

    def _cut(self, at: int, probability: float) -> Stretch | None:
        """Speech goes on, but the stretch is as long as one may be: give it out and go on.

        The hop behind the cut, of this probability, is the first of what goes on.
        """
        stretch = self._give(at)
        self.floor = max(at, self.floor)
        self.spoken_until, self._spoken = self._last, self._speech_min
        self._begin(self.floor)
        self._probability, self._hops = probability, 1
        return stretch

    def _close(self, complete: int) -> Stretch | None:
        stretch = self._give(min(self._last + self._margin, complete))
        self._opened = self.spoken_until = NONE
        return stretch

    def _give(self, end: int) -> Stretch | None:
        end = min(end, self.given)
        if self._spoken < self._speech_min or end <= self._start:
            return None
        pcm = self._clean[max(self._start, self._taken) - self._base : end - self._base].copy()
        self.floor = end
        speech = self._probability / self._hops
        return Stretch(self._opened, self._start, end - self._start, pcm, speech)
