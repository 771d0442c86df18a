"""A token bucket: a byte rate with a burst, on a clock that the caller reads."""

import math

BURST_S = 1.0


class Bucket:
    """Holds BURST_S of the rate. A message larger than that goes when it is full, as a debt."""

    def __init__(self, now: float) -> None:
        self._rate_bytes_per_s: int | None = None
        self._tokens_bytes = math.inf
        self._filled_at = now

    def turn(self, rate_bytes_per_s: int | None, now: float) -> None:
        """From now on this rate counts (None: any). A debt stays one."""
        self._fill(now)
        self._rate_bytes_per_s = rate_bytes_per_s
        most = math.inf if rate_bytes_per_s is None else rate_bytes_per_s * BURST_S
        self._tokens_bytes = most if rate_bytes_per_s is None else min(self._tokens_bytes, most)

    def spend(self, size_bytes: int, now: float) -> None:
        """So many bytes go now, whether there is room for them or not."""
        self._fill(now)
        self._tokens_bytes -= size_bytes

    def wait_s(self, size_bytes: int, now: float) -> float:
        """Seconds until a message of so many bytes may go; 0: now."""
        rate = self._rate_bytes_per_s
        if rate is None:
            return 0.0
        self._fill(now)
        missing_bytes = min(size_bytes, rate * BURST_S) - self._tokens_bytes
        return missing_bytes / rate if missing_bytes >= 1 else 0.0

    def _fill(self, now: float) -> None:
        rate, passed_s = self._rate_bytes_per_s, now - self._filled_at
        self._filled_at = now
        if rate is not None:
            self._tokens_bytes = min(self._tokens_bytes + rate * passed_s, rate * BURST_S)
