"""What sequences leave behind for their next call, and for how long."""

import pytest

from agent.errors import BusyError, NotThere, RunError
from agent.inference import sequences
from agent.inference.sequences import (
    ALL_BYTES_MAX,
    IDLE_S,
    SEQUENCES_MAX,
    STATE_BYTES_MAX,
    Sequences,
    State,
    Step,
)


class Clock:
    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


def state(size: int = 4) -> State:
    return State("m/1", [], [bytes(size)])


def begin(found: Sequences, id: str, size: int = 4) -> None:
    with found.at("m", Step(id, start=True)) as memory:
        found.keep(memory, state(size))


def test_what_is_not_known_must_begin_with_its_start() -> None:
    found = Sequences(Clock())  # type: ignore[arg-type]
    with pytest.raises(NotThere, match="'a'"), found.at("m", Step("a")):
        pass
    with found.at("m", Step("a", start=True)):
        pass  # its first call failed
    assert len(found) == 0
    begin(found, "a")
    with found.at("m", Step("a")) as memory:
        assert found.state(memory, "m", Step("a"), "m/1") == state()
        with pytest.raises(NotThere, match="m/2 serves now"):
            found.state(memory, "m", Step("a"), "m/2")
    with pytest.raises(NotThere), found.at("other", Step("a")):
        pass


def test_the_idle_are_forgotten_and_the_busy_are_not() -> None:
    clock = Clock()
    found = Sequences(clock)  # type: ignore[arg-type]
    for id in "abc":
        begin(found, id)
    with found.at("m", Step("a")):
        clock.now_s = IDLE_S
        begin(found, "c")
        clock.now_s += 1
        with pytest.raises(NotThere), found.at("m", Step("b")):
            pass
        assert len(found) == 2
    with found.at("m", Step("a")):  # its step took long, and has ended just now
        pass
    clock.now_s += IDLE_S + 1
    with pytest.raises(NotThere), found.at("m", Step("a")):
        pass
    assert len(found) == found.used_bytes == 0


def test_they_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Sequences(Clock())  # type: ignore[arg-type]
    for i in range(SEQUENCES_MAX):
        begin(found, str(i))
    with pytest.raises(BusyError), found.at("m", Step("more", start=True)):
        pass
    begin(found, "7")  # one that is there may begin again
    assert found.used_bytes == 4 * SEQUENCES_MAX
    with found.at("m", Step("7")) as memory:
        found.keep(memory, None)
    begin(found, "more")
    with (
        found.at("m", Step("8")) as memory,
        pytest.raises(RunError, match="grew"),
    ):
        found.keep(memory, State("m/1", [], [memoryview(bytearray(STATE_BYTES_MAX + 1))]))  # type: ignore
    monkeypatch.setattr(sequences, "ALL_BYTES_MAX", found.used_bytes + 10)
    with found.at("m", Step("8")) as memory:
        found.keep(memory, state(4 + 10))
        with pytest.raises(BusyError, match="sequences of"):
            found.keep(memory, state(4 + 11))  # they had room when they began
        found.keep(memory, state(4))
    monkeypatch.undo()
    monkeypatch.setattr(sequences, "SEQUENCES_MAX", 1 << 30)
    found.used_bytes = ALL_BYTES_MAX
    with pytest.raises(BusyError), found.at("m", Step("one more", start=True)):
        pass
