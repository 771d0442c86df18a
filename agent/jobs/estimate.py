"""When a job will be done: what it has left, and what goes before it, at the measured rates."""

from collections.abc import Iterable, Mapping

from agent.errors import HoldfastError
from agent.jobs.infer import Where
from agent.store.jobrows import Waiting


def etas(
    waiting: Iterable[Waiting],
    rates: Mapping[str, float],
    where: Where,
    spent_s: Mapping[str, float],
) -> dict[str, float | None]:
    """Seconds until each is done, by id; None where a rate that it takes was never measured.

    `waiting` comes in the order in which it is to go; of each domain what runs goes first. `rates`
    are seconds for a row, by model; `spent_s` is how long the chunk at hand of a running job runs.
    """
    found: dict[str, float | None] = {}
    queue_s: dict[str, float | None] = {}  # by domain
    for one in sorted(waiting, key=lambda one: not one.running):
        domain, row_s = _domain(one.model, where), rates.get(one.model)
        ahead_s = queue_s.get(domain, 0.0) if domain is not None else None
        if ahead_s is None or row_s is None:
            left_s = None
        else:
            left_s = ahead_s + max(0.0, one.rows_left * row_s - spent_s.get(one.id, 0.0))
        found[one.id] = None if left_s is None else round(left_s, 3)
        if domain is not None:
            queue_s[domain] = left_s
    return found


def first_s(ends: Mapping[str, float | None]) -> float | None:
    """Seconds until the first job is done, and may make room; None where nobody knows."""
    return min((one for one in ends.values() if one is not None), default=None)


def _domain(model: str, where: Where) -> str | None:
    try:
        return where(model).domain
    except HoldfastError:  # it will fail when its turn comes, and takes no time
        return None
