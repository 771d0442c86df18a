"""How many instances of a pool serve: more while calls wait, fewer when they do not."""

import logging

from agent.config import Instances
from agent.inference.domains.pool import Pool
from agent.inference.domains.work import Work
from agent.words import counted

log = logging.getLogger("domain")
GROW_AFTER_S = 0.1  # a call waited so long, and there may be one instance more
SHRINK_AFTER_S = 30.0  # so long the last instance in line had nothing to do


class Growth:
    """Of one domain, within its `instances.min` and `max`."""

    def __init__(self, name: str, now_s: float) -> None:
        self._name = name
        self._idle_since_s = now_s

    def tend(self, pool: Pool, sizes: Instances, head: Work | None, now_s: float) -> None:
        """Grow or shrink by one, if it is time; `head` is the call that goes next."""
        if head or any(one.flights for one in pool.serving[sizes.min :]):
            self._idle_since_s = now_s
        serving = pool.serving_max
        if head and now_s - head.times.arrived_s > GROW_AFTER_S and serving < sizes.max:
            if len(pool.ready) >= min(pool.size, serving + sizes.spare):
                pool.resize(serving + 1, serving + 1 + sizes.spare)
                log.info("domain %s grows: %s", self._name, counted(serving + 1, "instance"))
        elif serving > sizes.min and now_s - self._idle_since_s > SHRINK_AFTER_S:
            pool.resize(serving - 1, serving - 1 + sizes.spare)
            self._idle_since_s = now_s
