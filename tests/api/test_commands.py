"""The doors of the commands: who sees what one answered, who cancels, and how a wait ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from agent.api.entry.access import Access
from agent.api.entry.guard import Guard
from agent.api.entry.tokens import Tokens
from agent.api.routes.commands import COMMANDS, CommandDoors
from agent.clock import Clock
from agent.commands.twin import Twin
from agent.health.conditions import Conditions
from agent.protocol.commands import Result
from tests.api.entrance import bearer
from tests.api.served import Served
from tests.commands.rig import Rig, rig
from tests.outside import as_json, holdfast
from tests.sync.rig import eventually


class Doors:
    """Of a desk, with tokens."""

    def __init__(self, one: Rig, served: Served, tokens: Tokens) -> None:
        self.one, self.served = one, served
        self._tokens = tokens

    async def token(self, *scopes: Any) -> dict[str, str]:
        """The headers of somebody who holds these."""
        return bearer((await self._tokens.create("-".join(scopes), scopes))[1])

    async def order(self, name: str, id: str, **headers: str) -> tuple[int, dict[str, Any]]:
        order = {"name": name, "id": id}
        return await self.served.ask("POST", "?wait_s=0", order, **headers)

    async def begun(self, name: str) -> None:
        seen = 0
        while (await self.one.desk.result(name)).state != "running":
            seen = await self.one.desk.changes.after(seen)


@asynccontextmanager
async def doors(folder: Path) -> AsyncIterator[Doors]:
    async with rig(folder) as one:
        clock = Clock()
        tokens = Tokens(folder / "tokens.json", Conditions(clock), clock)
        twin = Twin("dev", [], one.store.twin, one.desk, lambda _: None, clock)
        routes = CommandDoors(one.desk, one.store.journal, twin).routes()
        guard = Guard(Access((), tokens), [], clock)
        async with Served(
            folder, f"http://localhost{COMMANDS}", routes, tokens=tokens, guard=guard
        ) as served:
            yield Doors(one, served, tokens)


async def test_what_one_answered_is_for_those_who_might_have_ordered_it(tmp_path: Path) -> None:
    async with doors(tmp_path) as site:
        admin = await site.token("admin", "read")
        reader = await site.token("read", "infer", "operate")
        ask = site.served.ask
        for name in ("grave", "write"):
            status, _ = await ask("POST", "?wait_s=20", {"name": name, "id": name}, **admin)
            assert status == (200 if name == "grave" else 403)
        await site.order("write", "write", **reader)
        await site.one.ended("write")

        async def seen(who: dict[str, str]) -> list[dict[str, Any]]:
            """What the three doors tell of `grave`."""
            _, again = await site.order("grave", "grave", **who)  # as if he had ordered it
            _, shown = await ask("GET", "/grave", **who)
            _, page = await ask("GET", **who)
            return [again, shown, *(one for one in page["commands"] if one["id"] == "grave")]

        for one in await seen(admin):
            assert (one["state"], one["result"]) == ("succeeded", {"wrote": "x"})
        for one in await seen(reader):
            assert (one["state"], "result" in one) == ("succeeded", False)
        assert (await ask("GET", "/write", **reader))[1]["result"] == {"wrote": "x"}


async def test_what_has_not_begun_is_cancelled_by_who_may_order_it(tmp_path: Path) -> None:
    async with doors(tmp_path) as site:
        ask = site.served.ask
        operator, reader = await site.token("operate", "read"), await site.token("read", "infer")
        await site.order("wait", "first", **operator)
        await site.begun("first")
        await site.order("wait", "second", **operator)
        status, said = await ask("DELETE", "/second", **reader)
        assert (status, said["verdict"]) == (403, "not_allowed")
        status, said = await ask("DELETE", "/second", **operator)
        assert (status, said["state"], said["reason"]) == (200, "interrupted", "cancelled")
        assert "token 'operate-read' by http" in said["message"]
        assert (await ask("DELETE", "/second", **operator))[0] == 200, "it is, as it was"
        status, said = await ask("DELETE", "/first", **operator)
        assert (status, "runs already" in said["error"]) == (409, True)
        assert (await ask("DELETE", "/none", **operator))[0] == 404
        site.one.effects.gate.set()
        await site.one.ended("first")
        assert (await ask("DELETE", "/first", **operator))[0] == 409
        assert site.one.effects.lines() == ["first:x"]


async def test_who_waits_is_told_how_far_it_is_when_the_agent_ends(tmp_path: Path) -> None:
    async with doors(tmp_path) as site:
        told: list[Result] = []
        site.one.desk.listeners.append(told.append)
        await site.order("tell", "one")
        await eventually(lambda: any(one.progress for one in told), "it has told its progress")
        waiting = asyncio.create_task(
            site.served.ask("POST", "?wait_s=60", {"name": "tell", "id": "one"})
        )
        site.one.desk.part()
        async with asyncio.timeout(20):
            status, said = await waiting
        assert (status, said["state"], said["progress"]) == (202, "running", 0.25)


async def test_the_command_line_cancels_and_says_why_not(tmp_path: Path) -> None:
    async with doors(tmp_path) as site:
        config = tmp_path / "config.yaml"
        socket = {"api": {"socket": site.served.socket}}
        config.write_text(yaml.safe_dump({"link": {"ack_from": "broker"}, **socket}))

        async def cancel(name: str, *more: str) -> Any:
            arguments = ("commands", "cancel", name, "--config", str(config), *more)
            return await asyncio.to_thread(holdfast, *arguments)

        await site.order("wait", "first")
        await site.begun("first")
        await site.order("wait", "second")
        done = await cancel("second", "--json")
        assert (done.returncode, as_json(done)["reason"]) == (0, "cancelled"), done.stderr
        assert "cancelled before it began" in (await cancel("second")).stdout
        refused = await cancel("first")
        assert (refused.returncode, "runs already" in refused.stderr) == (1, True)
        site.one.effects.gate.set()
