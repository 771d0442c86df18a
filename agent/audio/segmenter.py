"""Where speech begins and ends: speech probabilities and clean sound in, stretches of speech out.

Positions are samples from the start of the take. Probability k belongs to hop k; clean sound lags
by a hop. Nothing before `floor` is given out (again): it belongs to stretches already kept.
Memory is bounded by `length_s_max` of sound, plus what one call brings.
"""

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.config import Segments
from agent.records import RATE_HZ

NONE = -1  # of a position


class Stretch(Struct, frozen=True):
    """Clean sound [start, start + len(pcm)) that holds speech; `speech` is its mean probability."""

    start: int
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
        self._opened = NONE  # where the open stretch's speech began
        self._last = 0  # end of its last hop of speech
        self._spoken = 0  # samples of speech in it, after the floor
        self._probabilities: list[float] = []

    @property
    def given(self) -> int:
        """The position behind the last clean sample."""
        return self._base + len(self._clean)

    @property
    def needed(self) -> int:
        """A segmenter that begins with the clean sample here gives out the same from now on."""
        begin = self._opened if self._opened != NONE else self._now
        return max(0, max(self.floor, begin - self._margin) - self._hop)

    def push(self, clean: NDArray[np.int16], speech: NDArray[np.float32]) -> list[Stretch]:
        """The next clean sound and probabilities; the stretches that ended with them."""
        self._clean = np.concatenate([self._clean, clean])
        found = [s for p in speech.tolist() if (s := self._judge(p)) is not None]
        keep_from = min(self.needed, self.given)
        self._clean = self._clean[max(0, keep_from - self._base) :]
        self._base = max(self._base, keep_from)
        return found

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
        self._probabilities.append(probability)
        complete = self._now - self._hop  # clean sound lags by a hop
        if self._now - max(self._opened - self._margin, self.floor) >= self._length_max:
            return self._cut(complete)
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
        self._opened, self._probabilities = max(begin, self.floor), []
        self._last = self.spoken_until if goes_on else 0
        self._spoken = self._speech_min if goes_on else 0
        return True

    def _cut(self, at: int) -> Stretch | None:
        """Speech goes on, but the stretch is as long as one may be: give it out and go on."""
        stretch = self._give(at)
        self.floor = self._opened = max(at, self.floor)
        self.spoken_until, self._spoken = self._last, self._speech_min
        self._probabilities = self._probabilities[-1:]
        return stretch

    def _close(self, complete: int) -> Stretch | None:
        stretch = self._give(min(self._last + self._margin, complete))
        self._opened = self.spoken_until = NONE
        return stretch

    def _give(self, end: int) -> Stretch | None:
        start, end = max(self._opened - self._margin, self.floor, self._base), min(end, self.given)
        if self._spoken < self._speech_min or end <= start:
            return None
        pcm = self._clean[start - self._base : end - self._base].copy()
        self.floor = end
        return Stretch(start, pcm, float(np.mean(self._probabilities)))
