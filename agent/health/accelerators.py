"""Whether the accelerators are there, cool, whole and answer; what they take.

Limits: one reading at a time, each in a thread. One that is not back within BOUND_S is said, and
waited for: no other is begun on top of it. Where something is wrong, the next look is after RETRY_S
instead of LOOK_S. Between two readings that are further apart than GAP_S, no energy is counted
unless the board itself counts it. XIDS_MAX kinds of Xids are counted for each. What a
call takes is the mean of the last PER_CALL_S.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from msgspec import Struct, field, structs

from agent.clock import Clock
from agent.faults import REMEDIES, Class, Fault, Remedy, fault_of_xid
from agent.health.conditions import Conditions, Severity
from agent.host.accelerators.accelerator import (
    Accelerators,
    Backend,
    Reading,
    Throttle,
    Unreadable,
    fault_of,
    hot,
)
from agent.threads import apart
from agent.words import counted

LOOK_S, RETRY_S = 5.0, 30.0
BOUND_S = 4.0
GAP_S = 4 * LOOK_S
CALM_S = 60.0  # without being slowed once more, after which it is over
ERRORS_CALM_S = 86_400.0  # without another error of the hardware's
XIDS_MAX = 64
PER_CALL_S = 600.0
HELPS: dict[Remedy, str] = {
    "smaller": "give it smaller batches, or fewer models",
    "cpu": "models run on the CPU meanwhile; mend what is named",
    "instance": "the process that used it is started again; if that goes on, see the kernel's log",
    "domain_on_cpu": "models run on the CPU meanwhile; if that goes on, reboot",
    "cool": "look at fan, dust, and how warm it is around it",
    "reboot": "reboot; if it comes again, look at its seat, its power supply and its heat",
    "person": "install a driver and a CUDA that fit each other",
}
SLOWED: dict[Throttle, tuple[Severity, str, str]] = {
    "thermal": ("warning", "it is too hot", HELPS["cool"]),
    "under_voltage": (
        "warning",
        "its supply voltage breaks down",
        "give it a stronger power supply, or a lower power mode (nvpmodel)",
    ),
    "power_brake": ("warning", "the board asks it to take less power", "check its power supply"),
    "hardware": ("warning", "of heat or for want of power", "look at its cooling and its supply"),
    "over_current": ("note", "it took more current than it may", "a lower power mode (nvpmodel)"),
}  # power_cap is not here: full load is no condition


class Known(Reading, frozen=True, kw_only=True):
    """A reading, and what was counted since the agent began: joules, and Xids by their number.

    Its `fault` is also that of an Xid of this reading, or of heat.
    """

    energy_taken_j: float | None = None
    xid_counts: dict[str, int] = field(default_factory=dict)


class AcceleratorsShown(Struct, frozen=True):
    """All that are known, by the last reading, which is `age_s` old (null: none came back yet).

    `backend` is who is asked; `cause` says why nobody could be asked, or does not answer.
    `energy_per_call_j` is what all took in the last ten minutes, while idle too, for each call of a
    model that was answered (null: nobody measures, or there was none).
    """

    backend: Backend
    age_s: float | None
    cause: str | None
    accelerators: list[Known]
    energy_per_call_j: float | None = None


class Tally(Struct):
    """What is counted of one accelerator; monotonic seconds."""

    taken_j: float | None = None
    board_j: float | None = None
    power_w: float | None = None
    read_s: float | None = None
    uncorrected: int | None = None
    xids: dict[int, int] = {}
    slowed_s: dict[Throttle, float] = {}
    erred: str = ""
    erred_s: float = 0.0
    useless: Class | None = None  # for this fault


class AcceleratorWatch:
    """Reads them, again and again."""

    def __init__(
        self,
        accelerators: Accelerators,
        conditions: Conditions,
        clock: Clock,
        look_s: float = LOOK_S,
        bound_s: float = BOUND_S,
        calls: Callable[[], int] = lambda: 0,
        leave: Callable[[Class, str], object] = lambda *_: None,
    ) -> None:
        """`calls`: how many calls of models were answered so far.

        `leave` has whoever uses an accelerator leave it. It is told once for each fault of a
        reading that makes it useless, with its class and its cause in words.
        """
        self._accelerators = accelerators
        self._conditions = conditions
        self._clock = clock
        self._look_s = look_s
        self._bound_s = bound_s
        self._calls = calls
        self._leave = leave
        self._taken = deque[tuple[float, float, int]]()  # when, joules, calls, each so far
        self._reading: asyncio.Task[list[Reading]] | None = None
        self._found: list[Reading] = []
        self._tallies: dict[str, Tally] = {}
        self._read_s: float | None = None
        self._cause: str | None = None

    async def run(self) -> None:
        """Look for ever; where there is nothing to look at, once."""
        while True:
            again_s = await self.look()
            if self._accelerators.backend == "none":
                return
            await asyncio.sleep(again_s)

    async def look(self) -> float:
        """Look now, for BOUND_S at most; in how many seconds to look again."""
        name = self._accelerators.backend
        if self._reading is None:
            self._reading = asyncio.create_task(apart(self._accelerators.read))
        done, _ = await asyncio.wait({self._reading}, timeout=self._bound_s)
        if not done:
            self._cause = f"a reading is not back within {self._bound_s:.0f} s: the driver hangs"
            todo = "nothing: it is waited for; if that goes on, reboot"
            self._conditions.hold("accelerator_mute", name, "warning", self._cause, todo)
            return self._look_s
        reading, self._reading = self._reading, None
        self._conditions.clear("accelerator_mute", name)
        try:
            found = reading.result()
        except Unreadable as error:
            self._cause = str(error)
            missing = error.fault is not None and error.fault.kind == "ep_missing"
            severity: Severity = "note" if missing and not self._found else "warning"
            self._conditions.hold("accelerator_lost", name, severity, str(error), error.hint)
            return RETRY_S
        self._conditions.clear("accelerator_lost", name)
        self._cause = None
        self._take(found)
        return self._look_s if all(one.present for one in found) else RETRY_S

    def shown(self) -> AcceleratorsShown:
        """What is known; asks nobody."""
        age_s = None if self._read_s is None else self._clock.monotonic() - self._read_s
        return AcceleratorsShown(
            self._accelerators.backend,
            None if age_s is None else round(age_s, 1),
            self._cause,
            [self._known(one) for one in self._found],
            self._energy_per_call_j(),
        )

    def hottest_c(self) -> float | None:
        """Of the last reading, if that is not long ago."""
        if self._read_s is None or self._clock.monotonic() - self._read_s > GAP_S:
            return None
        found = [one.temperature_c for one in self._found if one.temperature_c is not None]
        return max(found, default=None)

    async def state(self) -> AcceleratorsShown:
        """The same, as a section of the status."""
        return self.shown()

    def _known(self, reading: Reading) -> Known:
        tally = self._tallies[reading.id]
        counts = {str(xid): count for xid, count in sorted(tally.xids.items())}
        taken_j = None if tally.taken_j is None else round(tally.taken_j, 1)
        said = {**structs.asdict(reading), "fault": fault_of(reading)}
        return Known(**said, energy_taken_j=taken_j, xid_counts=counts)

    def _take(self, found: list[Reading]) -> None:
        now = self._clock.monotonic()
        for one in found:
            tally = self._tallies.setdefault(one.id, Tally())
            self._tell_lost(one)
            if len(found) == 1:  # of several nobody knows here which one the models use
                self._have_left(one, tally)
            self._tell_slowed(one, tally, now)
            self._tell_errors(one, tally, now)
            _count_energy(one, tally, now)
        self._found, self._read_s = found, now
        self._count_calls(now)

    def _count_calls(self, now: float) -> None:
        taken_j = [one.taken_j for one in self._tallies.values() if one.taken_j is not None]
        if taken_j:
            self._taken.append((now, sum(taken_j), self._calls()))
        while self._taken and now - self._taken[0][0] > PER_CALL_S:
            self._taken.popleft()

    def _energy_per_call_j(self) -> float | None:
        if not self._taken:
            return None
        (_, before_j, before), (_, now_j, now) = self._taken[0], self._taken[-1]
        return round((now_j - before_j) / (now - before), 3) if now > before else None

    def _tell_lost(self, one: Reading) -> None:
        if one.present:
            self._conditions.clear("accelerator_lost", one.id)
            return
        todo = HELPS[one.fault.remedy if one.fault else REMEDIES["off_the_bus"]]
        cause = f"{one.name} is not there any more: {one.cause}"
        self._conditions.hold("accelerator_lost", one.id, "warning", cause, todo)

    def _have_left(self, one: Reading, tally: Tally) -> None:
        """Heat is no reason to: a GPU that is slowed mostly still goes before the CPU."""
        found, why = _useless(one)
        if found and found != tally.useless:
            self._leave(found, f"{one.name}: {why}")
        tally.useless = found

    def _tell_slowed(self, one: Reading, tally: Tally, now: float) -> None:
        """A cause without numbers that change: each other cause would be told anew."""
        reasons = list(one.throttled or ())
        if hot(one) and "thermal" not in reasons:
            reasons.append("thermal")
        tally.slowed_s |= dict.fromkeys((why for why in reasons if why in SLOWED), now)
        recent = [why for why, at in tally.slowed_s.items() if now - at <= CALM_S]
        tally.slowed_s = {why: tally.slowed_s[why] for why in recent}
        if not recent:
            self._conditions.clear("accelerator_slowed", one.id)
            return
        told = [SLOWED[why] for why in SLOWED if why in recent]
        causes, todos = "; ".join(row[1] for row in told), "; ".join(row[2] for row in told)
        said = f"{one.name} is slowed: {causes}"
        self._conditions.hold("accelerator_slowed", one.id, told[0][0], said, todos)

    def _tell_errors(self, one: Reading, tally: Tally, now: float) -> None:
        """Errors of the hardware's; those of programs that used it are their domain's to tell."""
        for xid in one.xids:
            if xid in tally.xids or len(tally.xids) < XIDS_MAX:
                tally.xids[xid] = tally.xids.get(xid, 0) + 1
            if (found := fault_of_xid(xid)) and _of_hardware(found):
                tally.erred, tally.erred_s = f"Xid {xid}", now
        uncorrected = one.ecc_uncorrected_errors
        if uncorrected is not None:
            if uncorrected > (tally.uncorrected or 0):
                errors = counted(uncorrected, "uncorrected error")
                tally.erred, tally.erred_s = f"{errors} of its memory", now
            tally.uncorrected = uncorrected
        if tally.erred and now - tally.erred_s <= ERRORS_CALM_S:
            cause = f"{one.name} reports {tally.erred}"
            todo = "reboot; if it comes again, have it replaced (NVIDIA's Xid catalog says more)"
            self._conditions.hold("accelerator_errors", one.id, "warning", cause, todo)
        else:
            self._conditions.clear("accelerator_errors", one.id)


def _useless(reading: Reading) -> tuple[Class | None, str]:
    """The class of a reading's fault that makes its accelerator useless, and why; None: it works.

    Whatever Xids came after it: those are of the programs that used it.
    """
    if not reading.present:
        return reading.fault.kind if reading.fault else "off_the_bus", str(reading.cause)
    for xid in reading.xids:
        if (found := fault_of_xid(xid)) and _of_hardware(found):
            return found.kind, f"Xid {xid}"
    return None, ""


def _of_hardware(found: Fault) -> bool:
    """Whether it is the accelerator's own, and not that of a program."""
    return found.remedy == "reboot"


def _count_energy(one: Reading, tally: Tally, now: float) -> None:
    """By the board's own count where it has one, else power over time (trapezoidal rule)."""
    more: float | None = None
    if one.energy_j is not None:
        before = tally.board_j
        # A smaller count began anew: the driver was loaded again.
        more = 0.0 if before is None else one.energy_j - (before if one.energy_j >= before else 0)
    elif one.power_w is not None:
        more = 0.0
        if tally.power_w is not None and tally.read_s is not None:
            apart_s = now - tally.read_s
            if apart_s <= GAP_S:
                more = (one.power_w + tally.power_w) / 2 * apart_s
    if more is not None:
        tally.taken_j = (tally.taken_j or 0.0) + more
    tally.board_j, tally.power_w, tally.read_s = one.energy_j, one.power_w, now
