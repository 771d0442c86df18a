"""`updates.check` and `updates.fetch` as orders: what they take, and what becomes the result."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.commands.verbs.updates import Check, Fetch, UpdateVerbs
from agent.updates.fetched import NotFetched
from tests.updates.bed import CONTENT, TARGET, Shop, content


class Call:
    """The order at hand."""

    id, step = "roll-1", ""

    def __init__(self) -> None:
        self.told: list[tuple[float, str]] = []

    async def note(self, step: str) -> None:
        raise AssertionError("neither notes a step")

    async def tell(self, progress: float, message: str = "") -> None:
        self.told.append((progress, message))


async def ordered(verbs: UpdateVerbs, name: str, args: dict[str, Any], call: Call) -> Any:
    verb: Any = next(one for one in verbs.verbs() if one.name == name)
    assert verb.lane == "updates"
    for handler in (verb.run, verb.resume):  # what was broken off is the same work again
        found = await handler(msgspec.convert(args, verb.args), call)
    return msgspec.json.decode(msgspec.json.encode(found))


async def test_check_and_fetch(tmp_path: Path) -> None:
    shop, call = Shop(tmp_path / "shop"), Call()
    shop.add()
    shop.publish()
    device = content(tmp_path / "device", shop, f"file://{shop.served}")
    verbs = UpdateVerbs(device, 300.0, 3600.0)
    found = await ordered(verbs, "updates.check", {}, call)
    assert [one["target"] for one in found["offers"]] == [TARGET]
    assert found["versions"]["timestamp"] == 2
    assert found["expires"]["timestamp"].startswith("2026-07-01")
    assert found["expiry_judged"]
    fetched = await ordered(verbs, "updates.fetch", {"target": TARGET}, call)
    assert Path(fetched["path"]).read_bytes() == CONTENT
    assert fetched["kind"] == "model"
    assert call.told[-1][0] == 1.0


async def test_refusal_is_the_result(tmp_path: Path) -> None:
    """The reason begins the message, which becomes that of the failed command; so does the hint."""
    shop = Shop(tmp_path / "shop")
    device = content(tmp_path / "device", shop, f"file://{shop.served}")
    verb: Any = UpdateVerbs(device, 300.0, 3600.0).verbs()[1]
    with pytest.raises(NotFetched) as refused:
        await verb.run(Fetch("models/none.tar"), Call())
    assert str(refused.value).startswith("no_target: the repository signs no models/none.tar")
    assert refused.value.hint


@pytest.mark.parametrize(
    "source", ["", "mqtt:", "/media/stick", "https://u.example/a", "file:///a"]
)
def test_sources(source: str) -> None:
    assert msgspec.convert({"source": source}, Check).source == source


@pytest.mark.parametrize("source", ["ftp://u", "stick", "http://a b", "https://u@h/", "mqtt:x"])
def test_no_sources(source: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"source": source}, Check)
