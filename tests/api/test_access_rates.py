"""How often somebody may ask, on a clock that the test moves."""

import os
import random
from pathlib import Path

import pytest

from agent.api.entry.rates import Rate
from agent.api.entry.refusals import FAILURE_EACH_S, FAILURES
from agent.api.routes.session import SESSION
from tests.api.entrance import Entrance, Still, bearer, is_a_refusal

STATUS = "/api/v1/status"
PROXY = {"X-Forwarded-For": "10.0.0.7"}


def test_a_rate_lets_through_what_it_says() -> None:
    clock, dice = Still(), random.Random(int(os.environ.get("HOLDFAST_SEED", "7")))
    rate, taken = Rate(10.0, 5, clock), 0
    began_s = clock.now_s
    for _ in range(20_000):
        clock.now_s += dice.random() * 0.02
        taken += rate.take("a") == 0.0
        assert taken <= 5 + (clock.now_s - began_s) * 10 + 1e-6
    assert taken >= (clock.now_s - began_s) * 10 - 1, "and all of it"


def test_the_wait_it_names_is_the_time_until_there_is_one() -> None:
    clock = Still()
    rate = Rate(2.0, 3, clock)
    assert [rate.take("a") for _ in range(3)] == [0.0] * 3
    wait_s = rate.take("a")
    assert wait_s == pytest.approx(0.5)
    assert rate.take("a") == wait_s, "asking in vain costs nothing"
    assert rate.take("b") == 0.0, "others have their own"
    clock.now_s += wait_s - 0.01
    assert rate.take("a") > 0
    clock.now_s += 0.011
    assert rate.take("a") == 0.0
    clock.now_s += 1000
    assert [bool(rate.take("a")) for _ in range(4)] == [False, False, False, True]


def test_the_table_is_bounded_and_newcomers_share_one_place() -> None:
    clock = Still()
    rate = Rate(1.0, 2, clock, keys_max=10)
    for n in range(10):
        assert rate.take(f"{n}") == 0.0
    assert [rate.take(f"new {n}") > 0 for n in range(5)] == [False, False, True, True, True]
    assert len(rate._paid_s) <= 11
    assert rate.take("0") == 0.0, "who has a place keeps it"
    clock.now_s += 60
    assert [rate.take(f"late {n}") for n in range(9)] == [0.0] * 9
    assert len(rate._paid_s) <= 11


async def test_each_token_has_its_own_rate_and_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with Entrance(tmp_path, rate_per_s_max=2.0) as site:
        one, two = await site.token(name="one"), await site.token(name="two")
        ask = site.visitor.ask
        # By whichever way it comes, it is one.
        ways = [(bearer(one), "tcp"), (await site.login(one), "tcp"), (bearer(one), "unix")]
        for way, _ in zip(ways, range(2), strict=False):
            assert (await ask("GET", STATUS, way[0], by=way[1])).status == 200
        for shown, by in ways:
            answer = await ask("GET", STATUS, shown, by=by)
            assert is_a_refusal(answer, 429)
            assert answer.headers["Retry-After"] == "1"
        assert (await ask("GET", STATUS, bearer(two))).status == 200
        site.clock.now_s += 0.5
        assert (await ask("GET", STATUS, bearer(one))).status == 200
        assert (await ask("GET", STATUS, bearer(one))).status == 429


async def test_whoever_waits_as_long_as_he_is_told_is_let_in(tmp_path: Path) -> None:
    async with Entrance(tmp_path, rate_per_s_max=1.0) as site:
        text = await site.token()
        for _ in range(5):
            assert (await site.visitor.ask("GET", STATUS, bearer(text))).status == 200
            answer = await site.visitor.ask("GET", STATUS, bearer(text))
            site.clock.now_s += int(answer.headers["Retry-After"])


async def test_an_address_without_a_token_has_a_rate_too(tmp_path: Path) -> None:
    async with Entrance(tmp_path, rate_per_s_max=2.0) as site:
        text = await site.token()
        statuses = [(await site.visitor.ask("GET", SESSION, PROXY)).status for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        assert (await site.visitor.ask("GET", "/nothing", PROXY)).status == 429
        assert (await site.visitor.ask("GET", STATUS, {**PROXY, **bearer(text)})).status == 200


@pytest.mark.parametrize("by", ["tcp", "unix"])
async def test_this_machine_and_the_unix_socket_have_none_without_a_token(
    tmp_path: Path, by: str
) -> None:
    async with Entrance(tmp_path, rate_per_s_max=1.0) as site:
        for _ in range(20):
            assert (await site.visitor.ask("GET", STATUS, by=by)).status == 200


async def test_no_rate_is_none(tmp_path: Path) -> None:
    async with Entrance(tmp_path) as site:
        text = await site.token()
        for _ in range(50):
            assert (await site.visitor.ask("GET", STATUS, bearer(text))).status == 200


@pytest.mark.parametrize("door", ["header", "login"])
async def test_wrong_tokens_are_few_for_each_address(tmp_path: Path, door: str) -> None:
    async with Entrance(tmp_path) as site:
        good = await site.token()

        async def wrong(by: str) -> int:
            if door == "header":
                answer = await site.visitor.ask("GET", STATUS, bearer("hf_x"), by=by)
            else:
                answer = await site.visitor.ask("POST", SESSION, body={"token": "hf_x"}, by=by)
            if answer.status == 429:
                waits.add(answer.headers["Retry-After"])
            return answer.status

        waits: set[str] = set()
        assert [await wrong("tcp") for _ in range(FAILURES + 5)] == [401] * FAILURES + [429] * 5
        assert waits == {str(round(FAILURE_EACH_S))}
        assert await wrong("unix") == 401, "another address"
        assert (await site.visitor.ask("GET", STATUS)).status == 200, "it shows none"
        assert (await site.visitor.ask("GET", STATUS, bearer(good))).status == 200, "a good one"
        site.clock.now_s += FAILURE_EACH_S
        assert [await wrong("tcp") for _ in range(2)] == [401, 429]
