"""Which models of a domain have left the accelerator, and when each may try to go back.

    accelerator ── fault ──► CPU ── probes_min probes in a row ──► accelerator
                              │ ▲
                              └─┘ a probe that fails doubles the pause before the next

The pause is `probe_s_min` at first, and `probe_s_max` at most. After a probe that passed the next
one comes in `probe_s_min`. A fault within `probe_s_max` of a return begins with twice the pause of
the fall before it, so that an accelerator that works for its probes only is soon left alone for
long; one that has served for longer is forgiven. Pure: it is told the time, in monotonic seconds.
"""

from collections.abc import Iterable, Mapping

from agent.config import Domain as Settings


class Fall:
    """Of one model, from the fault to its return. `row_s` is what a row took before, as measured.

    `fault` is the class of the fault, `cause` what was said of it.
    """

    def __init__(
        self, fault: str, cause: str, since_s: float, pause_s: float, row_s: float | None
    ) -> None:
        self.fault = fault
        self.cause = cause
        self.since_s = since_s
        self.pause_s = pause_s
        self.due_s = since_s + pause_s  # when the next probe is
        self.row_s = row_s
        self.passes = 0  # probes, in a row
        self.refusal = ""  # why the last probe failed


class Ladder:
    """Of one domain."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.falls: dict[str, Fall] = {}
        self.count: dict[str, int] = {}  # falls, by the class of the fault
        self.probes: dict[str, int] = {"passed": 0, "failed": 0}
        self._returns: dict[str, tuple[float, float]] = {}  # model -> when, the pause before it

    def fell(
        self, model: str, fault: str, cause: str, now_s: float, row_s: float | None = None
    ) -> bool:
        """A model met this fault; whether that is new."""
        if model in self.falls:
            return False
        pause_s = self.settings.probe_s_min
        returned_s, before_s = self._returns.pop(model, (None, 0.0))
        if returned_s is not None and now_s - returned_s < self.settings.probe_s_max:
            pause_s = self._doubled(before_s)
        self.falls[model] = Fall(fault, cause, now_s, pause_s, row_s)
        self.count[fault] = self.count.get(fault, 0) + 1
        return True

    def due_s(self) -> float | None:
        """When the next probe is; None: no model waits for one."""
        return min((fall.due_s for fall in self.falls.values()), default=None)

    def due(self, now_s: float) -> list[str]:
        """The models to be probed now."""
        return [name for name, fall in self.falls.items() if fall.due_s <= now_s]

    def passed(self, models: Iterable[str], now_s: float) -> list[str]:
        """A probe of these passed; those of them that may go back now."""
        self.probes["passed"] += 1
        may = list[str]()
        for fall, name in ((self.falls[n], n) for n in models if n in self.falls):
            fall.passes += 1
            fall.refusal = ""
            fall.due_s = now_s + self.settings.probe_s_min
            if fall.passes >= self.settings.probes_min:
                may.append(name)
        return may

    def failed(self, models: Iterable[str], why: str, now_s: float) -> None:
        """A probe of these failed, or their return did."""
        self.probes["failed"] += 1
        for fall in (self.falls[name] for name in models if name in self.falls):
            fall.passes = 0
            fall.refusal = why
            fall.pause_s = self._doubled(fall.pause_s)
            fall.due_s = now_s + fall.pause_s

    def returned(self, models: Iterable[str], now_s: float) -> None:
        """These run on the accelerator again."""
        for name in models:
            if fall := self.falls.pop(name, None):
                self._returns[name] = now_s, fall.pause_s

    def keep(self, models: Mapping[str, object]) -> None:
        """The domain has these models, and no others."""
        self.falls = {name: fall for name, fall in self.falls.items() if name in models}
        self._returns = {name: one for name, one in self._returns.items() if name in models}

    def hurry(self, now_s: float) -> None:
        """The accelerator is mended, or was not to blame: probe all now, and one pass is enough."""
        self._returns.clear()
        for fall in self.falls.values():
            fall.passes = self.settings.probes_min - 1
            fall.pause_s = self.settings.probe_s_min
            fall.due_s = now_s

    def _doubled(self, pause_s: float) -> float:
        return min(max(2 * pause_s, self.settings.probe_s_min), self.settings.probe_s_max)
