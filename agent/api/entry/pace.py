"""How fast a body has to come, beside the time that it has in all.

Limits: each BYTES_PER_S that come give it one second more, of which it saves PAUSE_S.
"""

BYTES_PER_S = 4096  # GPRS brings some 5 KiB/s: a recording of 2 MB in its ten minutes
PAUSE_S = 20.0  # TCP sends again after 1, 2, 4 and 8 s: what a bad network loses comes within it


class Pace:
    """Of one body; seconds are of the loop's clock."""

    def __init__(self, now_s: float, whole_s: float, pause_s: float) -> None:
        """It has `whole_s` in all, and `pause_s` without a byte."""
        self._end_s = now_s + whole_s
        self._pause_s = pause_s
        self.due_s = min(now_s + pause_s, self._end_s)  # when more, or its end, has to be here

    def came(self, size_bytes: int, now_s: float) -> None:
        """So much of it is here."""
        earned_s = self.due_s + size_bytes / BYTES_PER_S
        self.due_s = min(earned_s, now_s + self._pause_s, self._end_s)

    def excuse(self, now_s: float) -> None:
        """Nothing came since nobody read."""
        self.due_s = now_s + self._pause_s
