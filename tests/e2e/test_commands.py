"""A real agent, a real broker: orders that outlast the agent, its death and the network's."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent import VERSION
from agent.cli.client import Client
from agent.protocol.commands import Command, sign
from agent.protocol.signing import Key
from tests.outside import Device, Mosquitto, running, until
from tests.sync.controller import Controller

DEVICE = "device-under-test"
ROOT = f"holdfast/v1/{DEVICE}"


class Site:
    """The device, its broker, and who orders."""

    def __init__(self, folder: Path) -> None:
        self.key = Key.kept(folder / "fleet.key")
        self.broker = Mosquitto(folder)
        self.broker.start()
        link = {"broker_url": self.broker.url, "ack_from": "broker", "backoff_s_max": 1.0}
        link["backoff_s_min"] = 0.2
        orders = {"keys": [self.key.public]}
        self.device = Device(folder, {"link": link, "commands": orders})
        self.controller = Controller(self.broker.port, f"{ROOT}/result", root=ROOT)

    def signed(self, name: str, id: str, **args: Any) -> bytes:
        now = datetime.now(UTC)
        life = {"issued": now, "expires": now + timedelta(hours=1)}
        return sign(Command(id=id, name=name, args=args, device=DEVICE, **life), self.key)

    def up(self) -> None:
        until(lambda: self.device.status()["link"]["connected"], "the link is up")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with running(made.device):
        made.up()
        yield made
    made.controller.stop()
    made.broker.kill()


def test_a_restart_is_told_by_the_agent_that_comes_back(site: Site) -> None:
    controller = site.controller
    controller.send({"id": "bare", "name": "device.restart"})
    until(lambda: controller.ends("bare"), "it is refused")
    assert controller.ends("bare")[0].reason == "not_signed"
    controller.send(site.signed("device.restart", "again", why="a test"))
    until(lambda: controller.ends("again"), "the next agent tells it")
    (told,) = {one.state for one in controller.ends("again")}
    assert told == "succeeded"
    start = Client(site.device.socket).get("/api/v1/watchdog")["start"]
    assert start["cause"] == "ordered"
    client = Client(site.device.socket)
    shown = until(lambda: client.get("/api/v1/twin")["state"].get("agent"), "it is told unasked")
    alone = {"version": VERSION, "on_trial": False, "other": None, "went_back": None}
    assert shown["actual"] == alone
    answered = controller.ends("again")[0].result
    assert answered["before"] != answered["now"]


def test_no_order_is_lost_or_done_twice_where_the_agent_dies_again_and_again(site: Site) -> None:
    controller, chance = site.controller, random.Random(7)
    names = [f"n{n}" for n in range(60)]
    for n, name in enumerate(list(names)):
        controller.send(
            {"id": name, "name": "sync.limit", "args": {"rate_bytes_per_s_max": 5000 + n}}
        )
        if n % 20 == 10:
            until(lambda: controller.results, "it is at work")
            site.device.kill()
            for late in range(chance.randint(1, 5)):
                controller.send({"id": f"late{n}.{late}", "name": "status"})
                names.append(f"late{n}.{late}")
            site.device.start()
    until(lambda: all(controller.ends(name) for name in names), "each has a result")
    for name in names:
        assert {one.state for one in controller.ends(name)} == {"succeeded"}, name
    kept = Client(site.device.socket).get("/api/v1/commands?count=1000")["commands"]
    assert sorted(one["id"] for one in kept) == sorted(names)
    balance = site.device.ledger("commands")
    assert balance["produced"] == len(names)
