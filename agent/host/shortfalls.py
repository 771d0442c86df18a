"""What cannot be enforced, in words for the person who has to decide whether that will do."""

from collections.abc import Iterable
from errno import EBUSY

from agent.host.group import Refused
from agent.host.limits import Limits

NOT_THERE = "no hierarchy of control groups has it"
V1_MEMORY = "memory.limit_in_bytes"
SWAP_KNOBS = frozenset({"memory.swap.max", "memory.memsw.limit_in_bytes"})
SWAPPED = (
    "memory_bytes_max counts no swap, since this kernel's groups do not: a child grows into swap "
    "before it is ended; boot with swapaccount=1, or switch swap and zram off"
)
_REMEDY = "run the agent as a systemd unit with Delegate=yes, or as root"
_IN_PLACE = {
    "memory": (
        "memory_bytes_max",
        "RLIMIT_DATA stands in, which refuses the child more in place of ending it, and does not "
        "count what it maps or shares",
    ),
    "cpu": ("cpu_share", "its class alone decides what it gets"),
    "cpuset": ("cpus", "affinity stands in, which code in the child can change"),
}
_FAILED = {
    "class": (
        "class stays as it was for the children that run",
        "the new one holds from their next start; LimitNICE=+0 in the unit allows it at once",
    ),
    "oom": ("the order in which memory is taken back is not set", _REMEDY),
    "rlimit": ("memory_bytes_max is not enforced at all", _REMEDY),
    "affinity": ("cpus is not enforced at all", _REMEDY),
}


def shortfalls(limits: Limits, refused: Refused, own_cpus: frozenset[int]) -> list[str]:
    """A sentence for each limit that was asked for and is not enforced for real."""
    asked = {
        "memory": limits.memory_bytes_max,
        "cpu": limits.cpu_share,
        "cpuset": limits.cpus,
    }
    found = [
        f"{setting}: {instead}, because {_reason(refused[one])}; {_remedy(refused[one])}"
        for one, (setting, instead) in _IN_PLACE.items()
        if one in refused and asked[one] is not None
    ]
    found += [
        f"{what}: {_reason(refused[one])}; {todo}"
        for one, (what, todo) in _FAILED.items()
        if one in refused
    ]
    if foreign := set(limits.cpus or ()) - own_cpus:
        found.append(
            f"cpus: {_listed(foreign)} cannot be given, the agent itself has {_listed(own_cpus)}; "
            "correct the setting, or the unit's AllowedCPUs"
        )
    return found


def _reason(error: OSError) -> str:
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)


def _remedy(error: OSError) -> str:
    if error.errno == EBUSY and str(error.filename).endswith(V1_MEMORY):
        return "a child has more than that already: restart the domain, or lower less"
    return _REMEDY


def _listed(cpus: Iterable[int]) -> str:
    return ",".join(map(str, sorted(cpus)))
