"""A candidate: a fresh pool that is to take over, once its models have shown that they may serve.

One instance is started and proved before the others are: a model that fails costs one process.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from agent.config import Instances
from agent.errors import CallLost, ModelError
from agent.inference import wire
from agent.inference.catalog import Model
from agent.inference.domains.instance import Instance
from agent.inference.domains.pool import Pool
from agent.inference.domains.work import Result, Work

Ask = Callable[[Work], Awaitable[Result]]
Prove = Callable[[Model, wire.Loaded, Ask], Awaitable[None]]


class Refused(ModelError):
    """A candidate that must not serve; `labels` are the versions whose fault it may be.

    `surely`: it was judged; else its process ended, or never was ready, for a reason of its own.
    """

    def __init__(self, message: str, hint: str, labels: list[str], *, surely: bool) -> None:
        super().__init__(message, hint)
        self.labels = labels
        self.surely = surely


class Candidate:
    """Proves a pool."""

    def __init__(self, pool: Pool, fresh: Mapping[str, Model], prove: Prove) -> None:
        """`fresh` are those of its models that do not serve yet; `prove` raises ModelError."""
        self._pool = pool
        self._fresh = fresh
        self._prove = prove

    async def prove(self, sizes: Instances, *, whole: bool) -> None:
        """Have it ready to serve; `whole`: with all instances, not just the first.

        Raises Refused; then the pool is of no use.
        """
        pool = self._pool
        pool.resize(sizes.min, 1)
        await self._one_more()
        await self.judge()
        pool.resize(sizes.min, sizes.min + sizes.spare)
        while whole and len(pool.ready) < sizes.min:
            await self._one_more()

    async def judge(self) -> None:
        """Have the fresh models show, in an instance that is ready, that they may serve.

        Raises Refused.
        """
        instance = self._pool.ready[0]
        for name, model in self._fresh.items():
            try:
                await self._prove(model, instance.loaded[name], self._asking(instance))
            except ModelError as error:
                judged = instance.ready  # else it died of it, or was killed
                raise Refused(str(error), error.hint, [model.label], surely=judged) from error

    async def _one_more(self) -> None:
        """Until one more instance is ready. Raises Refused when one ended instead."""
        pool = self._pool
        pool.failed.clear()
        pool.fresh.clear()
        waits = [asyncio.create_task(e.wait()) for e in (pool.failed, pool.fresh)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not pool.ready:  # it came, and goes already
            await pool.failed.wait()
        if pool.failed.is_set():
            labels = [model.label for model in (self._fresh or pool.models).values()]
            raise Refused(
                f"{', '.join(labels)} cannot be loaded: {pool.cause}",
                "holdfast models verify says what is wrong with its files",
                labels,
                surely=False,
            )

    def _asking(self, instance: Instance) -> Ask:
        async def ask(work: Work) -> Result:
            work.once, work.holder = True, instance
            if not instance.ready:
                await self._pool.failed.wait()  # then its cause is known
                raise CallLost(self._pool.cause)
            instance.send([work], 1.0)
            return await work.done

        return ask
