"""`agent.update` and `agent.rollback` as verbs: what they take, and how they are gone on with."""

from typing import Any

import msgspec
import pytest

from agent.commands.verbs.agent import AgentVerbs, RollbackArgs, UpdateArgs
from agent.updates.slots.update import Outcome

ANEW = ["fetch agent.tar /stick", "update to agent.tar", "drop agent.tar"]
OUTCOME = Outcome("1.1", "1.0", "it has proved itself")


class Played:
    """Updating; it writes down what was asked of it."""

    def __init__(self, began: bool = False) -> None:
        self.asked: list[str] = []
        self._began = began

    def began(self, call: Any) -> bool:
        return self._began

    async def update(self, package: Any, call: Any, drop: Any) -> Outcome:
        self.asked.append(f"update to {package}")
        await drop(package)
        return OUTCOME

    async def rollback(self, call: Any, of: str) -> Outcome:
        self.asked.append(f"rollback of {of}")
        return OUTCOME

    async def resume(self, call: Any) -> Outcome:
        self.asked.append("resume")
        return OUTCOME


class Call:
    id, step = "x", ""

    async def note(self, step: str) -> None:
        raise AssertionError("played")

    async def tell(self, progress: float, message: str = "") -> None:
        raise AssertionError("played")


class Fetcher:
    def __init__(self, asked: list[str]) -> None:
        self._asked = asked

    async def fetch(self, target: str, told: Any, source: str = "") -> str:
        self._asked.append(f"fetch {target} {source}".strip())
        return target

    async def drop(self, fetched: str) -> None:
        self._asked.append(f"drop {fetched}")

    def foreign(self, source: str) -> str:
        return source


def made(played: Played) -> AgentVerbs:
    return AgentVerbs(played, Fetcher(played.asked))  # type: ignore[arg-type]


def test_both_are_grave_and_go_one_after_the_other() -> None:
    verbs = {one.name: one for one in made(Played()).verbs()}
    assert set(verbs) == {"agent.update", "agent.rollback"}
    for one in verbs.values():
        assert (one.lane, one.grave, one.scope) == ("agent", True, "admin")
        assert one.resume is not None


@pytest.mark.parametrize(
    ("began", "asked"),
    [(False, ANEW), (True, ["resume"])],
)
async def test_an_update_is_gone_on_with_where_it_had_begun(began: bool, asked: list[str]) -> None:
    played = Played(began)
    update, _ = made(played).verbs()
    args = UpdateArgs("agent.tar", "/stick")
    assert update.resume
    assert await update.resume(args, Call()) == OUTCOME
    assert played.asked == asked
    played.asked.clear()
    await update.run(args, Call())
    assert played.asked == ANEW


@pytest.mark.parametrize(("began", "asked"), [(False, ["rollback of r-1"]), (True, ["resume"])])
async def test_a_rollback_is_gone_on_with(began: bool, asked: list[str]) -> None:
    played = Played(began)
    _, rollback = made(played).verbs()
    assert rollback.resume
    await rollback.resume(RollbackArgs("r-1"), Call())
    assert played.asked == asked


@pytest.mark.parametrize("text", ["{}", '{"target":""}', '{"target":"x","force":true}'])
def test_what_it_takes_is_checked(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=UpdateArgs)
