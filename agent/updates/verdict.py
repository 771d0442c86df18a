"""What a version's calls came to, and whether that breaches its bounds. Pure."""

import math

from msgspec.structs import replace

from agent.config import Probation as Rules
from agent.inference.domains.domain import Domain
from agent.inference.domains.figures import Figures
from agent.updates.trials import Seen, Trial

# What becomes of calls that says something of the version: not `busy`, not `withdrawn`.
FAILED = ("refused", "failed", "late", "lost")
P95 = 0.95
CRASHES_MAX = 2
UNREST_MS = 5.0  # what a busy machine adds to any call


def counted(domain: Domain, name: str) -> Seen:
    """All calls to a model since the agent began, but for what they took."""
    figures = domain.figures.models.get(name)
    outcomes = figures.outcomes if figures else {}
    failed = sum(outcomes.get(one, 0) for one in FAILED)
    return Seen(failed + outcomes.get("ok", 0), failed)


def p95_ms(figures: Figures, name: str, since_s: float, calls_min: int) -> float | None:
    """Of what its last calls that arrived since then took to compute; None: of too few."""
    took_s = sorted(
        one.times.ended_s - one.times.began_s
        for one in figures.traces()
        if one.model == name and not one.fault and one.times.arrived_s >= since_s
    )
    if len(took_s) < calls_min:
        return None
    return round(took_s[math.ceil(P95 * len(took_s)) - 1] * 1000, 3)


def again(trial: Trial) -> Trial:
    """On probation still, unless the agent ended unasked more than CRASHES_MAX times meanwhile."""
    if trial.crashes <= CRASHES_MAX:
        return trial
    why = f"the agent ended unasked {trial.crashes} times while it was on probation"
    trial = replace(trial, state="taking_back", why=why)
    return kept(trial) if trial.former is None else trial


def kept(trial: Trial) -> Trial:
    """It is not good, and there is nothing to go back to."""
    return replace(trial, state="kept", why=f"{trial.why}; and no version served before it")


def breach(trial: Trial, rules: Rules) -> str:
    """Why the version is to be taken back; empty: it is not."""
    seen, before = trial.seen, trial.before
    if trial.deaths > rules.deaths_max:
        return f"{trial.deaths} of its processes died, and deaths_max is {rules.deaths_max}"
    most = before.failure_share + rules.failure_share_max
    if seen.calls >= rules.calls_min and seen.failure_share > most:
        return (
            f"{seen.failed} of {seen.calls} calls failed ({seen.failure_share:.0%}); the former "
            f"version failed in {before.failure_share:.0%}, and failure_share_max is "
            f"{rules.failure_share_max:g}"
        )
    if seen.p95_ms is None or before.p95_ms is None:
        return ""
    if seen.p95_ms > max(rules.latency_ratio_max * before.p95_ms, before.p95_ms + UNREST_MS):
        return (
            f"its p95 is {seen.p95_ms:g} ms; the former version's was {before.p95_ms:g} ms, and "
            f"latency_ratio_max is {rules.latency_ratio_max:g}"
        )
    return ""
