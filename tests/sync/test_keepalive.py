"""The keep-alive against an injected clock: noticed within one and a half intervals."""

import random

import pytest

from agent.sync.mqtt.keepalive import KeepAlive, Verdict

INTERVAL_S = 5.0
LIMIT_S = 1.5 * INTERVAL_S


class Line:
    """A link and its clock: what is sent goes out, what comes stops at some moment."""

    def __init__(self, seed: int, send_s: float | None) -> None:
        self.chance = random.Random(seed)
        self.now = self.chance.uniform(0, 1000)
        self.alive = KeepAlive(INTERVAL_S, self.now)
        self.pings: list[float] = []
        self._send_s = send_s

    def look(self, late: float = 0.3) -> Verdict:
        """The next look, up to `late` of its time too late, as on a machine with much to do."""
        step_s = self.alive.look_s * (1 + self.chance.uniform(0, late))
        until = self.now + step_s
        while self._send_s is not None and self.now + self._send_s < until:
            self.now += self._send_s
            self.alive.sent(self.now)
        self.now = until
        verdict = self.alive.look(self.now)
        if verdict is Verdict.PING:
            self.pings.append(self.now)
            self.alive.sent(self.now)
        return verdict


@pytest.mark.parametrize("send_s", [None, 0.01, 1.0], ids=["idle", "sending much", "sending"])
@pytest.mark.parametrize("seed", range(50))
def test_a_link_that_fell_silent_is_noticed_in_time(seed: int, send_s: float | None) -> None:
    line = Line(seed, send_s)
    for _ in range(line.chance.randrange(30)):  # alive until now
        assert line.look() is not Verdict.OVER
        line.alive.received(line.now)
    while line.look() is not Verdict.OVER:
        assert line.now - line.alive.received_at <= LIMIT_S
    assert line.now - line.alive.received_at <= LIMIT_S
    assert line.pings, "it was given a chance to answer"
    assert line.now - line.pings[-1] >= 0.5 * INTERVAL_S


def test_an_answered_ping_goes_on_for_ever() -> None:
    line = Line(1, None)
    for _ in range(1000):
        verdict = line.look()
        assert verdict is not Verdict.OVER
        if verdict is Verdict.PING:
            line.alive.received(line.now)
    assert len(line.pings) > 100


def test_a_link_on_which_only_the_broker_talks_is_pinged_too() -> None:
    """The broker ends a connection on which it hears nothing."""
    line, last = Line(1, None), 0.0
    for _ in range(200):
        line.alive.received(line.now)
        line.look()
        assert line.now - line.alive.sent_at < INTERVAL_S
        last = max(last, line.alive.sent_at)
    assert len(line.pings) > 10


def test_after_a_standstill_what_came_meanwhile_is_read_first() -> None:
    alive = KeepAlive(INTERVAL_S, 0.0)
    assert alive.look(3.0) is Verdict.PING
    assert alive.look(60.0) is Verdict.FINE, (
        "the loop stood still: the answer may lie in the socket"
    )
    assert alive.look(60.0 + alive.look_s) is Verdict.OVER
