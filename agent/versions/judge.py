"""Whether a version on trial is good: pure, every input is an argument.

    start    it is as soon as the agent is on it
    manual   somebody says so within `confirm_s`
    auto     after `confirm_s`: the link, where there was one before, stands, and nothing is wrong
             that was not before: no critical condition, and none of CAUSED, of those that a
             configuration can be the cause of

A link stands that is up at the end of `confirm_s`, and has been so in one piece for half of that,
STANDS_S at most. One that came so late that it cannot have been is given the rest of that time,
and nothing more: so whatever comes and goes faster is taken back, however often it was up, and what
came late and stays is not.

What the weather or the age of a disk brings takes no configuration back. A network that is away by
chance at the end, or is lost in the time that is given, does: nothing tells that from a wrong
broker, and the former version harms nobody.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from agent.health.conditions import Condition
from agent.health.names import Name
from agent.versions.forms import Trial

STANDS_S = 30.0
CAUSED: frozenset[Name] = frozenset(
    {
        "ack_missing",
        "api_certificate",
        "api_loopback_only",
        "broker_refused",
        "client_id_twice",
        "cpu_twin_down",
        "device_fallback",
        "domain_down",
        "domains_not_applied",
        "grant_refused",
        "hearing_stopped",
        "heartbeat_too_large",
        "limits_not_held",
        "part_stands_still",
        "power_mode_unset",
        "root_unready",
        "source_unreadable",
        "tokens_exposed",
        "version_refused",
        "watchdog_short",
        "watchdog_unarmed",
    }
)


class Seen(NamedTuple):
    """What holds now; `link_s` is how long there has been a link, None: there is none."""

    link_s: float | None
    conditions: Sequence[Condition]


class Verdict(NamedTuple):
    """What is to be done, and why."""

    word: Literal["wait", "confirm", "take back"]
    why: str = ""


def judge(trial: Trial, seen: Seen, elapsed_s: float) -> Verdict:
    """`elapsed_s` since it is in force."""
    if trial.confirm == "start":
        return Verdict("confirm", "the agent runs on it")
    if elapsed_s < trial.confirm_s:
        return Verdict("wait")
    if trial.confirm == "manual":
        return Verdict("take back", f"nobody confirmed it within {trial.confirm_s:g} s")
    found = faults(trial, seen, elapsed_s)
    if found:
        return Verdict("take back", f"after {trial.confirm_s:g} s {'; '.join(found)}")
    if trial.link_was_up and (seen.link_s or 0.0) < stands_s(trial):
        return Verdict("wait")
    return Verdict("confirm", f"all was well after {trial.confirm_s:g} s")


def stands_s(trial: Trial) -> float:
    """How long a link has to have been there in one piece."""
    return min(STANDS_S, trial.confirm_s / 2)


def faults(trial: Trial, seen: Seen, elapsed_s: float) -> list[str]:
    """What is wrong that was not before."""
    found = []
    if trial.link_was_up and (why := _link_fault(trial, seen, elapsed_s)):
        found.append(why)
    found += [
        f"{one.name} {one.subject}: {one.cause}"
        for one in seen.conditions
        if (one.name, one.subject) not in trial.held and counting(one)
    ]
    return found


def _link_fault(trial: Trial, seen: Seen, elapsed_s: float) -> str:
    """What is wrong with the link, as far as that is known by now; '': nothing."""
    if seen.link_s is None:
        down = next((one.cause for one in seen.conditions if one.name == "link_down"), "")
        return f"the link was not there{f': {down}' if down else ''}"
    if seen.link_s < elapsed_s - trial.confirm_s:  # it began after the end
        return f"the link did not stand: {seen.link_s:.1f} s ago it was not there"
    return ""


def counting(one: Condition) -> bool:
    """Whether it can speak against a version."""
    return one.severity == "critical" or (one.severity == "warning" and one.name in CAUSED)
