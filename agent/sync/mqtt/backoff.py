"""How long the link waits between two tries.

The whole wait is left to chance, from nothing up to a bound that doubles with each try: of a
thousand devices that lost their broker in the same moment, few come back in the same second.
"""

import random


class Backoff:
    """The bound grows from `min_s` to `max_s`."""

    def __init__(self, min_s: float, max_s: float, chance: random.Random) -> None:
        self._min_s = min(min_s, max_s)
        self._max_s = max_s
        self._chance = chance
        self._bound_s = self._min_s

    def wait_s(self) -> float:
        """The next wait."""
        bound_s, self._bound_s = self._bound_s, min(self._bound_s * 2, self._max_s)
        return self._chance.uniform(0.0, bound_s)

    def begin_anew(self) -> None:
        """A connection lasted: the next wait is short again."""
        self._bound_s = self._min_s
