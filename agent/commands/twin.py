"""The twin on the device: brings each aspect to what the cloud wants, by commands of the journal.

    desired (kept) -> differs from what is? -> a command (door `twin`, id twin.VERSION.ASPECT.TRY)
                   -> its result -> reported

Rules where cloud and device differ:
1. A higher version of the desired document takes the place of a lower one; an older one that comes
   late is passed over. A signed one takes the place of one that is not, and never the other way.
2. A newer document wins over what was changed on the device before it came.
3. What is changed on the device after it was converged on stays, and is reported as a conflict,
   until the cloud says something newer; but where the document says `enforce`, it is undone.
4. What a command could not bring about is tried TRIES_MAX times for one document, and is reported
   with the cause; the cloud says something newer, or somebody mends it on the device. What cannot
   be done as things stand (`not_now`, `full`) is no such try, and is ordered again and again.
5. While its command has not ended, it is not there yet, whatever is seen of it: it may be on trial,
   and be taken back.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import msgspec

from agent import VERSION
from agent.changes import Changes
from agent.clock import Clock
from agent.commands.courses import Course, Tries, whole
from agent.commands.trust import Refused
from agent.errors import HoldfastError, NotThere, RequestError, StoreError
from agent.protocol.commands import Command, Door, Order, Result
from agent.protocol.twin import AspectShown, Desired, Reported, Standing, Wanted

log = logging.getLogger("twin")
LOOK_S = 10.0  # what is changed on the device is seen so soon
TRIES_MAX = 3  # of one order
STEPS_MAX = 100  # orders for a part of one document: it may take several, one after the other
RETRY_S = (60.0, 600.0)  # the shortest and the longest pause (courses.py: pause_s)


class Aspect(NamedTuple):
    """A side of the device that the cloud may want to be otherwise.

    `actual` is how it is (JSON). `differs` says of what is wanted and what is whether something is
    to be done, and raises RequestError for what nobody can want. `command` is what is to be ordered
    then: a name and its args. `volatile`: a restart of the agent undoes it, and nobody has.
    `parts` is what is wanted in pieces of the same form, by name, that do not wait for each other.
    """

    name: str
    actual: Callable[[], Awaitable[Any]]
    differs: Callable[[Any, Any], bool]
    command: Callable[[Any, Any], tuple[str, dict[str, Any]]]
    volatile: bool = False
    parts: Callable[[Any], Mapping[str, Any]] = lambda wanted: {"": wanted}


class Kept(Protocol):
    """Where it is remembered (store/twinrows.py)."""

    async def get(self, key: str) -> bytes | None: ...  # noqa: D102
    async def put(self, key: str, body: bytes) -> None: ...  # noqa: D102


class Desk(Protocol):
    """Where commands are ordered (desk.py)."""

    listeners: list[Callable[[Result], None]]

    async def order(self, order: Order, door: Door) -> Result: ...  # noqa: D102
    async def result(self, name: str) -> Result: ...  # noqa: D102


class Twin:
    """`run` looks and orders, for ever; `reported` is what to tell, and `changes` when."""

    def __init__(
        self,
        device: str,
        aspects: Sequence[Aspect],
        kept: Kept,
        desk: Desk,
        believed: Callable[[str], None],
        clock: Clock,
    ) -> None:
        """`believed` raises Refused for a document by this signer ('': nobody signed it)."""
        self.changes = Changes()
        self.reported: Reported | None = None
        self._device = device
        self._aspects = {one.name: one for one in aspects}
        self._kept = kept
        self._desk = desk
        self._believed = believed
        self._clock = clock
        self._desired, self._by = Desired(version=0), ""  # and who signed it
        self._courses: dict[str, Course] = {}  # by aspect
        self._known = b"{}"  # of them, to the store
        self._due: dict[tuple[str, str], float] = {}  # monotonic: when a part may be tried next
        self._look = asyncio.Event()
        desk.listeners.append(self._listen)

    def shown(self) -> Reported:
        """What was reported last."""
        return self.reported or Reported(
            device=self._device, version=0, desired_version=0, holdfast=VERSION, state={}
        )

    async def want(self, wanted: Wanted) -> None:
        """Take what the cloud wants; returns once it is kept. Raises Refused, StoreError."""
        self._believed(wanted.by)
        desired = wanted.desired
        if desired.device not in (None, self._device) or (wanted.by and desired.device is None):
            raise Refused("wrong_device", f"the twin is for {desired.device or 'nobody named'}")
        await self._restore()
        # What is signed takes the place of what is not: nobody pins the twin who cannot sign.
        if (bool(wanted.by), desired.version) <= (bool(self._by), self._desired.version):
            if desired != self._desired:
                log.warning("version %d of what the cloud wants is passed over", desired.version)
            return
        await self._kept.put("desired", msgspec.json.encode(wanted))
        log.info("the cloud wants version %d", desired.version)
        self._desired, self._by = desired, wanted.by
        self._due.clear()
        self._look.set()

    async def run(self) -> None:
        """Bring the device to what is wanted, for ever."""
        while True:
            self._look.clear()
            with suppress(StoreError):  # the parts that need the store say so
                await self._restore()
                await self._converge()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._look.wait()

    def _listen(self, result: Result) -> None:
        """A command that was ordered here has ended: look at once what it has brought."""
        if result.ended and result.id.startswith("twin."):
            self._look.set()

    async def _restore(self) -> None:
        """What was kept, once."""
        if self.reported is not None:
            return
        if body := await self._kept.get("desired"):
            wanted = msgspec.json.decode(body, type=Wanted)
            self._desired, self._by = wanted.desired, wanted.by
        if body := await self._kept.get("tries"):
            self._known = body
            self._courses = msgspec.json.decode(body, type=dict[str, Course])
            for name, course in self._courses.items():
                if name in self._aspects and self._aspects[name].volatile:
                    course.undone()
        if body := await self._kept.get("reported"):
            self.reported = msgspec.json.decode(body, type=Reported)
        else:
            self.reported = self.shown()

    async def _converge(self) -> None:
        shown = {name: await self._step(one) for name, one in self._aspects.items()}
        for name in self._desired.state:
            if name not in self._aspects:
                known = ", ".join(self._aspects)
                shown[name] = AspectShown(standing="unknown", cause=f"there are {known}")
        await self._keep()
        await self._report(shown)

    async def _keep(self) -> None:
        """Have the store know how far they are."""
        if (body := msgspec.json.encode(self._courses)) != self._known:
            await self._kept.put("tries", body)
            self._known = body

    async def _step(self, aspect: Aspect) -> AspectShown:
        """Do what is to be done for an aspect now; how it stands."""
        course = self._course(aspect.name)
        under_way = await self._under_way(course)  # first: what has ended is not on trial any more
        try:
            actual = await aspect.actual()
        except HoldfastError as error:
            return AspectShown(standing="failed", cause=str(error))
        if aspect.name not in self._desired.state:
            return AspectShown(actual=actual)
        wanted = self._desired.state[aspect.name]
        try:
            aspect.differs(wanted, actual)
        except RequestError as error:
            return AspectShown(actual=actual, standing="failed", cause=str(error))
        parts = {
            name: course.parts[name].shown("converging")
            if name in under_way
            else await self._bring(aspect, course, name, one, actual)
            for name, one in aspect.parts(wanted).items()
        }
        return whole(actual, parts)

    def _course(self, name: str) -> Course:
        """How far an aspect is with the document that counts now."""
        course, document = self._courses.get(name, Course()), (self._desired.version, self._by)
        if course.by is None and course.version == self._desired.version:
            course.by = self._by
        if name in self._desired.state and (course.version, course.by) != document:
            course = self._courses[name] = course.anew(*document)
        return course

    async def _under_way(self, course: Course) -> set[str]:
        """The parts for which a command is under way; of those that have ended it is noted."""
        found = set()
        for name, one in course.parts.items():
            with suppress(NotThere):  # it was never accepted, and is not under way
                if one.open:
                    result = await self._desk.result(one.command)
                    if result.ended:
                        one.end(result)
                    else:
                        found.add(name)
        return found

    async def _bring(
        self, aspect: Aspect, course: Course, part: str, wanted: Any, actual: Any
    ) -> AspectShown:
        """Do what is to be done for a part for which no command is under way; how it stands."""
        one = course.parts.setdefault(part, Tries())
        if not aspect.differs(wanted, actual):
            one.converged, one.ended, one.cause = True, True, ""
            return AspectShown(standing="converged")
        if one.converged and aspect.name not in self._desired.enforce:
            return AspectShown(standing="conflict", cause="changed on the device")
        command = aspect.command(wanted, actual)
        standing = await self._order((aspect.name, part), course, one, command)
        return one.shown(standing)

    async def _order(
        self,
        key: tuple[str, str],
        course: Course,
        one: Tries,
        command: tuple[str, dict[str, Any]],
    ) -> Standing:
        """See to it that a command is under way, or was tried often enough."""
        name, args = command
        said = msgspec.json.encode(command, order="deterministic").decode()
        if one.said != said or one.converged:  # the next step on the way, or it is enforced
            one.said, one.count, one.waits, one.ended, one.converged = said, 0, 0, True, False
            self._due.pop(key, None)
        if one.ended and one.steps < STEPS_MAX and self._is_due(key, one):
            one.ended = False
            course.step += 1
            one.command = f"twin.{course.version}.{key[0]}.{course.step}"
        if one.ended:
            return "failed"
        await self._keep()  # first: a number that was given to an order is no other's
        order = Order(Command(id=one.command, name=name, args=args, issuer="twin"), course.by or "")
        result = await self._desk.order(order, "twin")
        if not result.ended:
            return "converging"
        one.end(result)
        return "failed"

    def _is_due(self, key: tuple[str, str], one: Tries) -> bool:
        """Whether it is time to try a part once more."""
        if one.count >= TRIES_MAX:
            return False
        now = self._clock.monotonic()
        if now < self._due.setdefault(key, now + one.pause_s(*RETRY_S)):
            return False
        del self._due[key]
        return True

    async def _report(self, state: dict[str, AspectShown]) -> None:
        assert self.reported
        version = self._desired.version
        fresh = msgspec.structs.replace(
            self.reported, desired_version=version, state=state, holdfast=VERSION
        )
        if msgspec.json.encode(fresh) == msgspec.json.encode(self.reported):
            return
        fresh = msgspec.structs.replace(fresh, version=fresh.version + 1)
        await self._kept.put("reported", msgspec.json.encode(fresh))
        self.reported = fresh
        self.changes.tell()
