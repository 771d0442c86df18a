"""What is fetched for the models, and what of it stays, while no process may be started."""

from pathlib import Path
from typing import Any

import pytest

from agent.errors import ModelError, NotNow
from tests.inference.domains.rig import put
from tests.updates.site import Site, begun, drop, first

ARGS = {"target": "models/m-2.tar", "activate": True}


class Content:
    """The fleet's repository: version 2 of m; `held` before it is here where it says so."""

    def __init__(self, folder: Path) -> None:
        order = drop(folder, put(folder / "made", 2))
        self.kind, self.name, self.version = "model", "m", "2"
        self.path, self.digest = str(folder / "drop" / order["path"]), order["sha256"]
        self.fetched = self.dropped = 0
        self.site: Site | None = None

    async def fetch(self, target: str, told: Any, source: str = "") -> Any:
        self.fetched += 1
        if self.site:
            self.site.rig.hold.set("safe mode", "holdfast watchdog resume")
        return self

    async def drop(self, fetched: Any) -> None:
        self.dropped += 1

    def foreign(self, source: str) -> str:
        return source


@pytest.fixture
def content(tmp_path: Path) -> Content:
    first(tmp_path)
    return Content(tmp_path)


async def test_nothing_is_fetched_for_what_cannot_be_proved_now(
    content: Content, tmp_path: Path
) -> None:
    async with begun(tmp_path) as site:
        site.models._content = content
        site.rig.hold.set("safe mode", "holdfast watchdog resume")
        done = await site.ordered("model.install", "c-1", **ARGS)
        assert done["kind"][0] == NotNow.__name__
        assert "safe mode" in done["message"]
        assert (content.fetched, site.there()) == (0, ["m", "m/1"])
        site.rig.hold.lift()
        done = await site.ordered("model.install", "c-2", **ARGS)
        assert done["state"] == "succeeded", done
        assert (content.fetched, content.dropped) == (1, 1)


async def test_what_was_fetched_stays_for_the_next_order_where_it_cannot_be_proved_now(
    content: Content, tmp_path: Path
) -> None:
    async with begun(tmp_path) as site:
        site.models._content = content
        content.site = site
        done = await site.ordered("model.install", "c-1", **ARGS)
        assert done["kind"][0] == NotNow.__name__, done
        assert (content.fetched, content.dropped) == (1, 0)
        assert site.there() == ["m", "m/1"], "nothing that was unpacked stays"
        content.site = None
        site.rig.hold.lift()
        content.digest = "0" * 64
        done = await site.ordered("model.install", "c-2", **ARGS)
        assert done["kind"][0] == ModelError.__name__, done
        assert content.dropped == 1, "what is not right goes"
