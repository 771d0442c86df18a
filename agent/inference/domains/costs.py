"""What calls cost, as measured: seconds of compute for a row, and whether batches pay."""

WEIGHT = 0.1  # of the newest measurement
PAYS = 0.95  # of the cost alone: a batch that saves less only makes the first wait for the last
PROBE_EACH = 64  # calls that ran alone, until a batch is tried again


class Costs:
    """Of one model."""

    def __init__(self) -> None:
        self._single_s: float | None = None  # for a row of a call that ran alone
        self._joint_s: float | None = None
        self._singles = 0  # since the last batch

    def row_s(self) -> float | None:
        """Seconds for a row; None when nothing is known yet."""
        known = [one for one in (self._single_s, self._joint_s) if one is not None]
        return min(known) if known else None

    def measured(self, seconds: float, rows: int, calls: int) -> None:
        """A batch of so many calls took so long. One without a row says nothing of a row's cost."""
        if rows == 0:
            return
        each_s = seconds / rows
        if calls == 1:
            self._single_s = _mixed(self._single_s, each_s)
            self._singles += 1
        else:
            self._joint_s = _mixed(self._joint_s, each_s)
            self._singles = 0

    def pays(self) -> bool:
        """Whether calls that could go together should."""
        if self._single_s is None or self._joint_s is None:
            return True
        return self._joint_s <= PAYS * self._single_s or self._singles >= PROBE_EACH


def _mixed(before_s: float | None, now_s: float) -> float:
    return now_s if before_s is None else before_s + WEIGHT * (now_s - before_s)
