"""What is wrong with the domains, as conditions: down, on another device, of another version."""

from collections.abc import Mapping
from typing import Protocol

from agent.health.conditions import Conditions
from agent.inference.domains.domain import Domain


class Domains(Protocol):
    """Who has them; agent/inference/domains/domains.py."""

    def all(self) -> list[Domain]: ...  # noqa: D102
    def instead(self, domain: Domain) -> Mapping[str, str]: ...  # noqa: D102


class DomainConditions:
    """Looks at a domain whenever it has changed."""

    def __init__(self, domains: Domains, hearing: str, conditions: Conditions) -> None:
        """`hearing` is the domain that hears."""
        self._domains = domains
        self._hearing = hearing
        self._conditions = conditions

    def changed(self, domain: Domain) -> None:
        """Say what holds of it now."""
        self._tell_versions(domain)
        if domain.ready.is_set() or domain not in self._domains.all():
            self._conditions.clear("domain_down", domain.name)
        else:
            waits = "audio waits in the store; " if domain.name == self._hearing else ""
            self._conditions.hold(
                *("domain_down", domain.name, "warning"),
                domain.cause or "its process has ended",
                domain.hint or f"{waits}it is being started again",
            )
        self._tell_devices(domain)
        self._tell_twin(domain)

    def _tell_devices(self, domain: Domain) -> None:
        """Say of each model that it runs elsewhere than its domain prefers.

        Of a domain that is down, what was said last still holds.
        """
        fallen = {
            f"{domain.name}/{name}": f"it runs on {loaded.ep}: {loaded.fallback}"
            for name in domain.models
            if (loaded := domain.loaded(name)) and loaded.fallback
        }
        fallen |= {f"{domain.name}/{name}": _why(domain, name) for name in domain.falls}
        if domain not in self._domains.all():
            fallen = {}
        elif not domain.ready.is_set():
            return
        for one in self._conditions.all():
            mine = one.name == "device_fallback" and one.subject.startswith(f"{domain.name}/")
            if mine and one.subject not in fallen:
                self._conditions.clear("device_fallback", one.subject)
        for subject, cause in fallen.items():
            remedy = f"mend what is named, or set domains.{domain.name}.devices to what there is"
            if subject.partition("/")[2] in domain.falls:
                remedy += (
                    "; it returns by itself when the accelerator works, and at once after: "
                    f"holdfast domains restart {domain.name}"
                )
            self._conditions.hold("device_fallback", subject, "warning", cause, remedy)

    def _tell_twin(self, domain: Domain) -> None:
        """Say that nothing would take over from the accelerator, where something should."""
        twin = domain.twin if domain in self._domains.all() else None
        if twin is None or not twin.restarts or twin.ready.is_set():
            self._conditions.clear("cpu_twin_down", domain.name)
            return
        self._conditions.hold(
            *("cpu_twin_down", domain.name, "warning"),
            f"its twin on the CPU is not ready: {twin.cause or 'its process has ended'}",
            twin.hint or "it is started again; holdfast logs says why it ended",
        )

    def _tell_versions(self, domain: Domain) -> None:
        """Whether other versions serve than those that should, and why."""
        instead = self._domains.instead(domain)
        if not instead:
            self._conditions.clear("version_refused", domain.name)
            return
        serving = [
            f"{domain.models[name].label} serves instead: {instead[name]}" for name in instead
        ]
        self._conditions.hold(
            *("version_refused", domain.name, "warning", "; ".join(serving)),
            f"mend the version, then: holdfast models load {next(iter(instead))}",
        )


def _why(domain: Domain, model: str) -> str:
    """Why a model is on the CPU, what that costs, and how far its way back is."""
    fall, ratio, loaded = domain.falls[model], domain.cost_ratio(model), domain.loaded(model)
    slower = f"a row takes {ratio:.2g} times as long; " if ratio else ""
    probes = f"{fall.passes} of {domain.settings.probes_min} probes have passed"
    refused = f" (the last one: {fall.refusal})" if fall.refusal else ""
    ep = loaded.ep if loaded else "nothing yet"
    return (
        f"it runs on {ep} for a fault of its accelerator "
        f"({fall.fault}); {slower}{probes}{refused}, "
        f"the pause is {fall.pause_s:.0f} s: {fall.cause}"
    )
