"""A real store and its model, side by side: what is asked of the one is held against the other."""

import copy
import itertools
from collections.abc import Callable, Sequence

from agent import config
from agent.errors import ProtocolError, StoreFull
from agent.records import Balance, Range, Record
from agent.store.outbox import Batch
from tests.store.model import GIVE_UP_MAX, Kept, Model, footprint
from tests.store.rig import Answer, Rig
from tests.store.steps import RAW, Ack, Step


class Pair:
    """Every method ends with a comparison of the two; AssertionError: they differ."""

    def __init__(self, settings: config.Store) -> None:
        self.model = Model(settings)
        self.rig = Rig(settings)
        self._settings = settings
        self._disk_is_full = False
        self._used_bytes = 0
        try:
            self.open_again(self.rig.open)
        except BaseException:  # nothing that was bent stays so
            self.rig.end()
            raise

    @property
    def disk_is_full(self) -> bool:
        return self._disk_is_full

    def allow_pages(self, more: int | None) -> None:
        """As `Rig.allow_pages`; meanwhile any call may be refused."""
        self._disk_is_full = more is not None
        self.rig.allow_pages(more)

    def lease(self, records_max: int, bytes_max: int, live_s: float = 0.0) -> Batch | None:
        now = self.rig.clock.stamp()
        (answer,) = self.rig.ask(self.rig.store.outbox.lease(records_max, bytes_max, live_s))
        assert answer.error is None
        fresh_ns = now.mono_ns - int(live_s * 1e9) if live_s else 1 << 62
        self.model.lease(answer.result, records_max, bytes_max, fresh_ns, now.boot)
        self.compare()
        return answer.result

    def lease_span(
        self, stream: str, span: Range, records_max: int, bytes_max: int
    ) -> Batch | None:
        outbox, name = self.rig.store.outbox, (self.rig.store.epoch, stream)
        (answer,) = self.rig.ask(outbox.lease_span(name, span, records_max, bytes_max))
        assert answer.error is None
        self.model.lease_span(stream, span, answer.result, records_max, bytes_max)
        self.compare()
        return answer.result

    def rewind(self, stream: str | None) -> None:
        store = self.rig.store
        store.outbox.rewind((store.epoch, stream) if stream else None)
        self.model.rewind(stream)
        self.compare()

    def release(self, stream: str, span: Range) -> None:
        store = self.rig.store
        store.outbox.release((store.epoch, stream), span)
        self.model.stream(stream).out -= set(range(span.first, span.last + 1))
        self.compare()

    def hold_back(self, stream: str, span: Range, *, let_go: bool) -> None:
        store, inside = self.rig.store, set(range(span.first, span.last + 1))
        if let_go:
            store.outbox.let_go((store.epoch, stream), span)
            self.model.stream(stream).held_back -= inside
        else:
            store.outbox.hold_back((store.epoch, stream), span)
            self.model.stream(stream).held_back |= inside
        self.compare()

    def check_blob(self, record: Record, start: int, size: int) -> None:
        (answer,) = self.rig.ask(self.rig.store.outbox.blob(record, start, size))
        kept = self.model.streams[record.stream].held.get(record.seq)
        assert answer.result == (kept.blob[start : start + size] if kept else b"")

    def perform(self, *steps: Step) -> None:
        """Ask for one step, or for several at once."""
        answers = self.rig.ask(*(step.ask(self.rig.store) for step in steps))
        self._take_in(self.model, steps, answers)
        self.compare(steps, answers)

    def _take_in(self, model: Model, steps: Sequence[Step], answers: Sequence[Answer]) -> None:
        """Change the model by what was answered; each error must have its reason."""
        stamp = self.rig.clock.stamp()
        new = [size for step in steps for size in step.new]
        bound = {step.stream for step in steps if step.producing}
        pairs = zip(steps, answers, strict=True)
        for step, answer in sorted(pairs, key=lambda pair: getattr(pair[1].result, "first", 0)):
            if answer.error is None:
                assert not isinstance(step, Ack) or step.makes_sense(model)
                step.did(model, stamp, answer.result)
            elif isinstance(answer.error, ProtocolError):
                assert isinstance(step, Ack)
                assert not step.makes_sense(model)
            else:
                assert isinstance(answer.error, StoreFull), answer.error
                assert self._disk_is_full or (
                    step.producing and model.may_refuse(sum(new), len(new), self._used_bytes, bound)
                ), f"refused without a reason: {answer.error}"

    def cut_off(self, point: str, times: int, steps: Sequence[Step]) -> None:
        """Ask for them and die at a point (`Rig.crash_in`); open again.

        What was answered before is there; of the rest each is wholly there or not at all.
        """
        calls = [step.ask(self.rig.store) for step in steps]
        answers = self.rig.crash_in(point, times, *calls)
        heard = [i for i, answer in enumerate(answers) if answer.heard]
        unheard = [i for i, answer in enumerate(answers) if not answer.heard]
        kept = copy.deepcopy(self.model)
        self._take_in(kept, [steps[i] for i in heard], [answers[i] for i in heard])
        wrong: list[AssertionError] = []
        for count in range(len(unheard), -1, -1):
            for some in itertools.combinations(unheard, count):
                self.model = copy.deepcopy(kept)
                try:
                    for i in some:
                        assert answers[i].error is None
                        steps[i].did(self.model, self.rig.clock.stamp(), None)
                    self.compare(steps, answers, crashed=True)
                except AssertionError as error:
                    wrong.append(error)
                    continue
                self._opened(self.rig.clock.at_s)
                return
        raise ExceptionGroup(f"no part of {len(unheard)} calls explains what is there", wrong)

    def open_again(self, opening: Callable[[], None], ended_s: float | None = None) -> None:
        """Open by `opening`; `ended_s`: where the clock of the boot before stood at its end."""
        opening()
        self._opened(self.rig.clock.at_s if ended_s is None else ended_s)
        self.compare()

    def _opened(self, ended_s: float) -> None:
        self._disk_is_full = False
        self.model.begin_anew()
        self.model.ages.open(self.rig.clock.stamp(), ended_s)

    def compare(
        self, steps: Sequence[Step] = (), answers: Sequence[Answer] = (), *, crashed: bool = False
    ) -> None:
        """What is there is what the model holds, but for what gave way for a reason."""
        model, now, seen = self.model, self.rig.clock.stamp(), self.rig.look()
        assert seen.faults == []
        kept = [answer.error is None and not crashed for answer in answers]
        well = all(kept)
        looked = any(kept) and model.ages.wrote(now, committed=well)
        overdue = model.overdue(now) if looked else []
        held = {name: set(records) for name, records in seen.held.items()}
        evicted, expired = model.explain(
            held, seen.ledger, now, together=len(steps) > 1, crashed=crashed
        )
        for name, stream in model.streams.items():
            assert seen.ledger.get(name, Balance(0, 0, 0, {})) == stream.balance, name
            assert seen.held.get(name, {}) == stream.held, name
            waiting = stream.waiting if stream.sendable != 0 else []
            size = sum(stream.held[seq].bytes for seq in waiting)
            assert seen.waiting.get(name, (0, 0)) == (len(waiting), size), name
            buried = stream.unsent - stream.again
            assert seen.buried.get(name, (0, 0)) == (len(buried), max(buried, default=0)), name
        assert seen.ledger.keys() <= model.streams.keys()
        assert seen.dead == {s: why for s, why in model.dead.items() if s in model.stream(RAW).held}
        assert seen.position == model.position
        for name, drops in seen.told.items():
            stream = model.streams[name]
            for drop in drops:
                dead = dict.fromkeys(stream.unsent, "dead")
                reasons = {
                    dead.get(s) or stream.dropped.get(s) for s in range(drop.first, drop.last + 1)
                }
                assert reasons == {drop.reason}, name
        late = [
            seq
            for name, seq in overdue
            if seq in model.streams[name].held
            and not any(step.leased_till_then(name, seq) for step in steps)
        ]
        assert not late or expired >= GIVE_UP_MAX, f"{late} should have expired"
        self._fits(seen.used_bytes, evicted, [size for step in steps for size in step.new])
        if well and any(step.producing for step in steps):
            assert seen.used_bytes <= self._settings.bytes_max
        self._used_bytes = seen.used_bytes

    def _fits(self, used_bytes: int, evicted: list[Kept], new: list[int]) -> None:
        """What was given up for the bound in all was needed, and no more of it."""
        if evicted:
            needed = self._used_bytes + footprint(sum(new), len(new))
            assert needed > self.model.evict_bytes, "there was room"
            spare = footprint(max(kept.bytes for kept in evicted), 1)
            assert used_bytes + spare > self.model.evict_bytes, "too much was given up"
