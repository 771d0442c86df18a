"""Whether a version on trial is good: pure, every input is an argument.

    start    it is as soon as the agent is on it
    manual   somebody says so within `confirm_s`
    auto     after `confirm_s`: the link, where there was one before, has been there for LINK_S in
             one piece, and nothing is wrong that was not before: no critical condition, and none of
             CAUSED, of those that a configuration can be the cause of

What the weather or the age of a disk brings takes no configuration back. A network that is away by
chance does: nothing tells that from a wrong broker, and the former version harms nobody.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from agent.health.conditions import Condition
from agent.health.names import Name
from agent.versions.forms import Trial

LINK_S = 1.0
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


def judge(trial: Trial, seen: Seen, elapsed_s: float, *, linked: bool) -> Verdict:
    """`elapsed_s` since it is in force; `linked`: there was a link for LINK_S since then."""
    if trial.confirm == "start":
        return Verdict("confirm", "the agent runs on it")
    if elapsed_s < trial.confirm_s:
        return Verdict("wait")
    if trial.confirm == "manual":
        return Verdict("take back", f"nobody confirmed it within {trial.confirm_s:g} s")
    found = faults(trial, seen, linked=linked)
    if found:
        return Verdict("take back", f"after {trial.confirm_s:g} s {'; '.join(found)}")
    return Verdict("confirm", f"all was well after {trial.confirm_s:g} s")


def faults(trial: Trial, seen: Seen, *, linked: bool) -> list[str]:
    """What is wrong that was not before."""
    found = []
    if trial.link_was_up and not linked:
        down = next((one.cause for one in seen.conditions if one.name == "link_down"), "")
        found.append(f"the link was not back{f': {down}' if down else ''}")
    found += [
        f"{one.name} {one.subject}: {one.cause}"
        for one in seen.conditions
        if (one.name, one.subject) not in trial.held and counting(one)
    ]
    return found


def counting(one: Condition) -> bool:
    """Whether it can speak against a version."""
    return one.severity == "critical" or (one.severity == "warning" and one.name in CAUSED)
