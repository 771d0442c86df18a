"""The time for which a version that a command activated is watched, and taken back by itself.

    activate ──► activating ──► watched ──► passed
                     │             ├──────► taking_back ──► taken_back, or kept where that cannot be
                     │             └──────► overtaken: somebody had another version serve
                     └ refused: it never served, and what was known before it is known again

It is watched here, not by the command that waits for it: that may be gone after a crash.

Limits  : one trial for each model, and what stays where that comes to nothing; written at each
          change of its state, each death, each KEEP_S.
Recovery: `restore`, before the domains run: a trial goes on where it was, KEEP_S too long at most.
          A version under which the agent ended unasked more often than `verdict.again` allows does
          not begin again: the former one does. One whose activation ended the agent TRIES_MAX times
          is not tried again. What stays is in the trial itself, from its first note on.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from msgspec.structs import replace

from agent.changes import Changes
from agent.errors import HoldfastError, ModelError, NotThere
from agent.health.conditions import Conditions
from agent.inference.domains.renewed import Renewed
from agent.tasks import Crew, through
from agent.updates import verdict
from agent.updates.trials import Seen, Trial, Trials
from agent.updates.watch import Parts, Watch

log = logging.getLogger("domain")
KEEP_S = 30.0
TOLD_S = 5.0
TRIES_MAX = 3
Told = Callable[[float, str], Awaitable[None]]


class Probation:
    """All that are on probation. `restore` before the domains run; `run` beside them."""

    def __init__(self, trials: Trials, parts: Parts, conditions: Conditions) -> None:
        self._trials = trials
        self._parts = parts
        self._domains: Renewed = parts.domains
        self._conditions = conditions
        self._changes = Changes()
        self._crew = Crew()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._kept_s: dict[str, float] = {}
        self._activating = set[str]()
        self._writing = asyncio.Lock()

    def restore(self, *, crashed: bool) -> None:
        """Go on with what was on probation. `crashed`: the agent had ended unasked."""
        for known in self._trials.all():
            trial, choice = known, self._domains.chosen(known.name)
            if trial.state == "activating" and choice and choice.version == trial.version:
                trial = replace(trial, state="watched")  # it was done, and not written down
            if trial.state == "watched":
                trial = verdict.again(replace(trial, crashes=trial.crashes + crashed))
            if trial.state == "taking_back" and trial.former is not None:
                trial = self._taken_back_at_start(trial, trial.former)
            if trial != known:
                try:
                    self._trials.note(trial)
                except OSError as error:
                    log.warning("%s: its probation is not noted: %s", trial.name, error)
            self._tell(trial)

    async def run(self) -> None:
        """Watch them, for ever."""
        for trial in self._trials.all():
            if trial.state == "watched" and trial.name not in self._tasks:
                self._begin(trial)
        try:
            await self._crew.run()
        finally:
            await self._crew.end()
            await through(self._part())

    def last(self, name: str) -> Trial | None:
        """The last version of a model that a command activated, and how that went."""
        return self._trials.of(name)

    def watched(self, name: str) -> Trial | None:
        """The version of a model that is on probation; None: none."""
        trial = self._trials.of(name)
        return trial if trial and trial.state in ("watched", "taking_back") else None

    def brought(self, command: str) -> Trial | None:
        """Which version a command activated; None where it did not, or others have since."""
        return self._trials.of_command(command)

    def former(self, name: str) -> int | None:
        """What served before the version that serves, where a command brought that."""
        trial = self._trials.bringing(name, self._domains.version(name))
        return trial.former if trial else None

    def activating(self, name: str) -> bool:
        """Whether a version of a model is just about to serve."""
        return name in self._activating

    async def activate(self, trial: Trial) -> None:
        """Have a version serve, and watch it from then on. The command of `trial` may call again.

        Raises ModelError, NotThere, NotNow: then the former one goes on to serve.
        """
        name, known = trial.name, self._trials.of(trial.name)
        if known and known.command == trial.command:
            if known.state != "activating":
                return
            trial = known
        elif stays := self._trials.bringing(name, trial.former):
            trial = replace(trial, stays=replace(stays, stays=None))
        self._leave(name)
        if trial.tries >= TRIES_MAX:
            await self._drop(name)
            raise ModelError(
                f"taken back: the agent ended {trial.tries} times while {name}/{trial.version} "
                "was being activated",
                "send it to those who made it, with what holdfast logs says",
            )
        trial = replace(trial, tries=trial.tries + 1, before=self._before(trial))
        try:
            await self._noted(trial)
        except OSError as error:
            await self._drop(name)
            raise ModelError(
                f"{name}/{trial.version}: its probation cannot be noted: {error}",
                "look at the disk of the store",
            ) from error
        self._conditions.clear("model_taken_back", name)
        self._activating.add(name)
        try:
            await self._load(trial)
        finally:
            self._activating.discard(name)
        trial = replace(trial, state="watched")
        await self._note(trial)
        self._tell(trial)
        self._begin(trial)

    async def over(self, name: str, command: str, told: Told) -> Trial:
        """The last word on what a command activated. Raises NotThere where nobody knows of it."""
        while True:
            number, trial = self._changes.number, self._trials.of(name)
            if trial is None or trial.command != command:
                raise NotThere(f"{name}: its probation is not known any more", "activate it again")
            if trial.ended:
                return trial
            share = 1 - trial.left_s / trial.probation_s if trial.probation_s else 1.0
            await told(min(1.0, max(0.0, share)), f"{name}/{trial.version} is on probation")
            with suppress(TimeoutError):
                async with asyncio.timeout(TOLD_S):
                    await self._changes.after(number)

    async def take_back(self, name: str, why: str) -> Trial | None:
        """Somebody ordered it: the former version of a model on probation serves, if that can be.

        The trial says whether it does; None: there was none. While no process may be started, the
        domain is to begin with it; HoldfastError where that cannot be: it is on probation still.
        """
        trial = self.watched(name)
        if trial is None:
            return None
        if self._parts.hold.holds and trial.former is not None:
            await self._domains.return_to(name, trial.former)
        self._leave(name)
        ordered = replace(trial, state="taking_back", why=why, ordered=True)
        return await self._take_back(ordered)

    async def forget(self, name: str, version: int) -> None:
        """A version is gone, and with it what there was to say of it; not what stays."""
        trial = self._trials.of(name)
        if trial and trial.version == version and trial.ended:
            self._conditions.clear("model_taken_back", name)
            await self._drop(name)

    async def _load(self, trial: Trial) -> None:
        """Raises HoldfastError where the version must not serve; then its trial is over."""
        name, former = trial.name, trial.former
        try:
            await self._domains.load(name, trial.version)
        except HoldfastError:
            if former is not None and self._domains.version(name) == trial.version:
                with suppress(HoldfastError):  # it serves, and would not after a restart
                    await self._domains.roll_back(name)
            await self._drop(name)
            raise

    async def _part(self) -> None:
        """What is on probation goes on from here."""
        for trial in self._trials.all():
            if trial.state == "watched":
                await self._note(trial)

    def _begin(self, trial: Trial) -> None:
        self._kept_s[trial.name] = self._parts.clock.monotonic()
        self._tasks[trial.name] = self._crew.begin(self._watch(trial))

    def _leave(self, name: str) -> None:
        if task := self._tasks.pop(name, None):
            task.cancel()

    async def _watch(self, trial: Trial) -> None:
        trial = await Watch(trial, self._parts).run(self._keep)
        if trial.state == "taking_back":
            await self._take_back(trial)
        else:
            await self._end(trial)

    async def _keep(self, trial: Trial) -> None:
        """It was looked at: written down now and then, flash wears."""
        now_s, former = self._parts.clock.monotonic(), self._trials.of(trial.name)
        died = former is not None and former.deaths != trial.deaths
        if died or now_s - self._kept_s[trial.name] >= KEEP_S:
            self._kept_s[trial.name] = now_s
            await self._note(trial)
        else:
            self._trials.know(trial)

    async def _take_back(self, trial: Trial) -> Trial:
        """The former version serves; noted before it is done, and after."""
        await self._note(trial)
        name, former = trial.name, trial.former
        if former is None:
            return await self._end(verdict.kept(trial))
        try:
            await self._domains.return_to(name, former)
        except HoldfastError as error:
            if self._domains.version(name) != former:
                why = f"{trial.why}; and {name}/{former} cannot serve: {error}"
                return await self._end(replace(trial, state="kept", why=why))
        return await self._end(replace(trial, state="taken_back"))

    async def _end(self, trial: Trial) -> Trial:
        await self._note(trial)
        self._tell(trial)
        said = f"{trial.name}/{trial.version}: its probation is over: {trial.state} {trial.why}"
        log.log(logging.INFO if trial.state == "passed" else logging.WARNING, "%s", said)
        return trial

    def _taken_back_at_start(self, trial: Trial, former: int) -> Trial:
        try:
            self._domains.choose(trial.name, former, trial.version)
        except OSError as error:
            log.warning("%s/%s is not taken back: %s", trial.name, trial.version, error)
            return replace(trial, state="watched")
        log.warning("%s/%s is taken back: %s", trial.name, trial.version, trial.why)
        return replace(trial, state="taken_back")

    def _before(self, trial: Trial) -> Seen:
        """What the former version's calls came to, as far as this process has seen them."""
        domain, rules = self._domains.serving(trial.name), self._parts.rules
        if domain is None or self._domains.version(trial.name) != trial.former:
            return trial.before
        p95_ms = verdict.p95_ms(domain.figures, trial.name, 0.0, rules.calls_min)
        return replace(verdict.counted(domain, trial.name), p95_ms=p95_ms)

    async def _noted(self, trial: Trial) -> None:
        """Have it on the disk. Raises OSError; then it is known until the agent ends."""
        async with self._writing:
            await asyncio.to_thread(self._trials.note, trial)
        self._changes.tell()

    async def _note(self, trial: Trial) -> None:
        """As `_noted`; a disk that does not take it is other conditions' matter."""
        try:
            await self._noted(trial)
        except OSError as error:
            log.warning("%s/%s: its probation is not noted: %s", trial.name, trial.version, error)
            self._changes.tell()

    async def _drop(self, name: str) -> None:
        try:
            async with self._writing:
                await asyncio.to_thread(self._trials.drop, name)
        except OSError as error:
            log.warning("%s: that its probation is over is not noted: %s", name, error)
        self._changes.tell()
        if stays := self._trials.of(name):
            self._stay(stays)

    def _stay(self, trial: Trial) -> None:
        """It is the last one again: watched still, if it was."""
        if not trial.ended:
            trial = replace(trial, state="watched")
            self._trials.know(trial)
            self._begin(trial)
        self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        """As conditions."""
        name, label = trial.name, f"{trial.name}/{trial.version}"
        if trial.state == "watched":
            self._conditions.hold(
                *("model_on_probation", name, "note"),
                f"{label} serves since a command activated it, and is watched",
                "nothing; the command model.rollback takes it back at once",
            )
        else:
            self._conditions.clear("model_on_probation", name)
        if trial.state in ("taken_back", "kept") and not trial.ordered:
            did = f"{trial.former} serves again" if trial.state == "taken_back" else "it serves on"
            self._conditions.hold(
                *("model_taken_back", name, "warning", f"{label}: {trial.why}; {did}"),
                f"mend it and publish it as another version, or have it go: model.remove {label}",
            )
