"""How often somebody may ask: a rate, and a burst that he may have saved up.

Limits: KEYS_MAX callers are told from each other; when so many ask at once, further ones share one
allowance until there is room.
"""

from agent.clock import Clock

KEYS_MAX = 1024
STRANGERS = ""  # whoever finds no room; no token and no address is called so


class Rate:
    """An allowance for each key: `per_s` requests, and `burst` of them at once after a rest."""

    def __init__(self, per_s: float, burst: float, clock: Clock, keys_max: int = KEYS_MAX) -> None:
        self._step_s = 1 / per_s
        self._burst_s = (burst - 1) / per_s
        self._clock = clock
        self._keys_max = keys_max
        self._paid_s: dict[str, float] = {}  # by key: when all that was taken will have come back
        self._swept_s = -1.0

    def take(self, key: str) -> float:
        """Take one; 0.0, or the seconds until there is one, and then nothing was taken."""
        now_s = self._clock.monotonic()
        paid_s = self._paid_s.get(key)
        if paid_s is None:
            key = self._room_for(key, now_s)
            paid_s = self._paid_s.get(key, now_s)
        paid_s = max(paid_s, now_s)
        if paid_s - now_s > self._burst_s:
            return paid_s - now_s - self._burst_s
        self._paid_s[key] = paid_s + self._step_s
        return 0.0

    def _room_for(self, key: str, now_s: float) -> str:
        """The key itself, if there is room for it."""
        if len(self._paid_s) < self._keys_max:
            return key
        if now_s - self._swept_s >= 1.0:  # looking through all of them must not cost each request
            self._swept_s = now_s
            self._paid_s = {one: at for one, at in self._paid_s.items() if at > now_s}
        return key if len(self._paid_s) < self._keys_max else STRANGERS
