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


class Stretch(Struct, frozen=True):
    """Clean sound [start, start + len(pcm)) that holds speech; `speech` is its mean probability."""

    start: int
    pcm: NDArray[np.int16]
    speech: float


class Segmenter:
    """Follows one stream of sound."""

    def __init__(
        self,
        rules: Segments,
        hop: int,
        judged: int = 0,
        clean: int = 0,
        floor: int = 0,
        speaking: bool = False,
    ) -> None:
        """The next probability is of the hop at `judged`, the next clean sample that of `clean`.

        `speaking` when a stretch was cut at `floor` and goes on.
        """
        self.floor = floor
        self.speaking = speaking
        self._rules = rules
        self._hop = hop
        self._margin = int(rules.margin_s * RATE_HZ)
        self._hangover = int(rules.hangover_s * RATE_HZ)
        self._speech_min = int(rules.speech_s_min * RATE_HZ)
        self._length_max = int(rules.length_s_max * RATE_HZ)
        self._clean = np.zeros(0, np.int16)
        self._now = judged  # end of the last hop that was judged
        self._base = clean  # position of the first sample in _clean
        self._opened = -1  # where the open stretch's speech began, -1 while there is none
        self._last = 0  # end of its last hop of speech
        self._spoken = 0  # samples of speech in it, after the floor
        self._probabilities: list[float] = []

    @property
    def needed(self) -> int:
        """The first sample that may still become part of a stretch."""
        begin = self._opened if self._opened >= 0 else self._now
        return max(self.floor, begin - self._margin - self._hop)

    def push(self, clean: NDArray[np.int16], speech: NDArray[np.float32]) -> list[Stretch]:
        """The next clean sound and probabilities; the stretches that ended with them."""
        self._clean = np.concatenate([self._clean, clean])
        found = [s for p in speech.tolist() if (s := self._judge(p)) is not None]
        keep_from = min(self.needed, self._base + len(self._clean))
        self._clean = self._clean[max(0, keep_from - self._base) :]
        self._base = max(self._base, keep_from)
        return found

    def finish(self, end: int) -> list[Stretch]:
        """The take ended at position `end`: close what is open."""
        stretch = self._close(end) if self._opened >= 0 else None
        self.floor = max(self.floor, end)
        return [stretch] if stretch else []

    def _judge(self, probability: float) -> Stretch | None:
        begin, self._now = self._now, self._now + self._hop
        threshold = self._rules.close_probability
        if self._opened < 0:
            goes_on = self.speaking and begin <= self.floor < self._now
            if probability < self._rules.open_probability and not goes_on:
                return None
            self._opened, self._spoken, self._probabilities = max(begin, self.floor), 0, []
        if probability >= threshold:
            self._last = self._now
            self._spoken += max(0, self._now - max(begin, self.floor))
        self._probabilities.append(probability)
        if self._now - max(self._opened - self._margin, self.floor) >= self._length_max:
            return self._cut()
        if self._now - self._last >= self._hangover:
            return self._close(self._now)
        return None

    def _cut(self) -> Stretch | None:
        """Speech goes on, but the stretch is as long as one may be: give it out and go on."""
        at = self._now - self._hop  # clean sound lags one hop
        stretch = self._give(at)
        self.speaking = True
        self._opened, self._spoken, self._probabilities = at, self._hop, self._probabilities[-1:]
        return stretch

    def _close(self, end: int) -> Stretch | None:
        stretch = self._give(min(self._last + self._margin, end))
        self._opened = -1
        self.speaking = False
        return stretch

    def _give(self, end: int) -> Stretch | None:
        start = max(self._opened - self._margin, self.floor, self._base)
        pcm = self._clean[start - self._base : end - self._base]
        if self._spoken < self._speech_min or not len(pcm):
            return None
        self.floor = start + len(pcm)
        return Stretch(start, pcm.copy(), float(np.mean(self._probabilities)))
