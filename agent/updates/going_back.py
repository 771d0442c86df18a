"""Back to the version of a model that served before: by its name, or by the order that brought the
one that serves.

A way back that is sent to many (`of`) comes to devices that took that version back themselves, or
never had it, too. There the former version may be that very one: nothing is done unless it serves.
It leads to what served before that order: what was tried since, and did not stay, is passed over.

Recovery: begun again with its step, it goes on to the version that was noted.
"""

from agent.errors import ModelError, NotNow, RequestError
from agent.inference.domains.renewed import Renewed
from agent.updates.orders import Order, Outcome, Step, step_of
from agent.updates.probation import Probation
from agent.updates.trials import Trial


class GoingBack:
    """Waits for nobody but a version that is just being proved."""

    def __init__(self, domains: Renewed, probation: Probation) -> None:
        self._domains = domains
        self._probation = probation

    async def roll_back(self, order: Order, name: str, of: str) -> Outcome:
        """Have the former version serve; a probation ends with that.

        `of` is the id of the order that activated the version which is to go ('': whichever
        serves); `name` may be empty then. Raises HoldfastError.
        """
        step, brought = step_of(order.step), None
        begun = step.at == "rolling_back"
        if of and not begun:
            brought, why = await self._brought(of, name)
            name = brought.name if brought else name
            if why:
                return Outcome(name=name, version=self._serves(name) or 0, why=why)
        name = name or step.name
        await self._domains.settled(name)
        if self._probation.activating(name):
            raise NotNow(
                f"a version of {name} is just being proved, and is to serve then",
                "order it again when it is on probation: model.list says so",
            )
        if not begun:
            step = await self._begin(order, name, brought)
        to = step.version
        if self._domains.version(name) != to:
            trial = await self._probation.take_back(name, "model.rollback was ordered")
            if trial and trial.state != "taken_back":
                raise ModelError(f"{name}/{to} does not serve: {trial.why}", "holdfast logs")
        if self._domains.version(name) != to:
            await self._domains.return_to(name, to)
        return Outcome(name=name, version=to, former=step.former)

    async def _brought(self, of: str, name: str) -> tuple[Trial | None, str]:
        """The version that an order activated, and why nothing is to be done there."""
        trial = self._probation.brought(of)
        if trial is None:
            return None, f"nothing was done: no version that {of} activated is known here"
        if name not in ("", trial.name):
            raise RequestError(f"{of} activated a version of {trial.name}, not of {name}")
        await self._domains.settled(trial.name)
        if self._serves(trial.name) == trial.version or self._probation.activating(trial.name):
            return trial, ""
        return trial, f"nothing was done: {trial.name}/{trial.version} of {of} does not serve"

    def _serves(self, name: str) -> int | None:
        """The version that does, or will as soon as it can."""
        choice, version = self._domains.chosen(name), self._domains.version(name)
        return choice.version if version is None and choice else version

    async def _begin(self, order: Order, name: str, brought: Trial | None) -> Step:
        """To which version, noted: from `brought`, or from what serves. Raises NotNow."""
        trial = brought or self._probation.watched(name)
        to = trial.former if trial else self._domains.former(name)
        if to is None:
            raise NotNow(
                f"model {name}: there is no former version to go back to",
                f"model.activate {name} and a version",
            )
        step = Step("rolling_back", name, to, self._serves(name))
        await order.note(step.text())
        return step
