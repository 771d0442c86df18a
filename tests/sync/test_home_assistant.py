"""The device in Home Assistant, at a real Mosquitto; a client reads what Home Assistant would."""

import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import VERSION, config
from agent.health.conditions import Condition
from agent.records import Balance
from agent.sync.home_assistant.announced import Announced, Book
from agent.sync.home_assistant.device import Entities, Withdrawal
from agent.sync.home_assistant.entities import object_id, topics_of
from agent.sync.plant.seen import DomainSeen
from tests.listener import Listener
from tests.outside import Mosquitto, running
from tests.sync.rig import Proxy, Stub, eventually
from tests.sync.site import SEEN, Watched, beside

ROOT = "holdfast/v1/dev/home_assistant"
CONFIG = "homeassistant/device/holdfast_dev/config"
PLATFORMS = {"sensor", "binary_sensor", "button"}


class House(Listener):
    """Home Assistant, as far as a broker sees it: `lies` is the last message of each topic."""

    def __init__(self, port: int) -> None:
        self.lies: dict[str, bytes] = {}
        super().__init__(port)

    def hear(self, topic: str, payload: bytes, *, retain: bool) -> None:
        super().hear(topic, payload, retain=retain)
        self.lies[topic] = payload

    def read(self, topic: str) -> Any:
        return json.loads(self.lies.get(topic) or b"{}")

    @property
    def config(self) -> Any:
        return self.read(CONFIG)

    @property
    def state(self) -> Any:
        return self.read(f"{ROOT}/state")

    @property
    def available(self) -> str:
        return self.lies.get(f"{ROOT}/availability", b"").decode()

    def press(self, button: str, payload: str = "PRESS", *, retain: bool = False) -> None:
        self.client.publish(f"{ROOT}/{button}", payload, 0, retain)


@pytest.fixture
def house(broker: Mosquitto) -> Iterator[House]:
    with House(broker.port) as found:
        yield found


class Home(Watched):
    """A device that Home Assistant sees."""

    def __init__(self, folder: Path, url: str, **settings: Any) -> None:
        super().__init__(folder, url)
        self.settings = msgspec.convert({"sample_s": 0.02, **settings}, config.HomeAssistant)

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[Entities]:
        place = self.place("home_assistant", self.settings)
        entities = Entities(
            *(self.settings, "dev", ROOT, self.look, self.order, self.conditions),
            *(random.Random(1), place, Book(self.folder / "home_assistant.json")),
        )
        line = self.line(place, entities, "home_assistant_down")
        async with beside(line.run(), entities.orders.run()):
            yield entities


async def test_it_is_announced_with_all_that_its_state_has(
    tmp_path: Path, broker: Mosquitto, house: House
) -> None:
    async with Home(tmp_path, broker.url, name="Barn").shown():
        await eventually(lambda: house.available == "online", "it is there")
        said = house.config
        assert said["device"]["identifiers"] == ["holdfast_dev"]
        assert (said["device"]["name"], said["device"]["sw_version"]) == ("Barn", VERSION)
        assert said["origin"]["name"] == "holdfast"
        assert said["availability_topic"] == f"{ROOT}/availability"
        parts = said["components"]
        assert {one["platform"] for one in parts.values()} == PLATFORMS
        assert {one["unique_id"] for one in parts.values()} == {f"holdfast_dev_{k}" for k in parts}
        assert said["state_topic"] == f"{ROOT}/state"
        for key, one in parts.items():
            if one["platform"] == "button":
                assert one["command_topic"] == f"{ROOT}/{key}"
            else:
                assert re.findall(r"value_json\['(.+)'\]", one["value_template"]) == [key]
                assert key in house.state
        assert parts["cpu_c"]["device_class"] == "temperature"
        assert "accelerator_c" not in parts  # nobody has read one
    with House(broker.port) as late:  # as Home Assistant after a restart of its own
        await eventually(lambda: late.available == "offline", "what is retained")
        assert late.config == said
        assert all(retain for _, _, retain in late.got)


async def test_the_state_follows(tmp_path: Path, broker: Mosquitto, house: House) -> None:
    home = Home(tmp_path, broker.url)
    async with home.shown():
        await eventually(lambda: house.available == "online", "it is there")
        assert house.state["status"] == "healthy"
        assert (house.state["problem"], house.state["domain_audio"]) == ("OFF", "ON")
        full = Condition("store_full", "store", "critical", "it is full", "empty it", 0, 1.0)
        note = Condition("clock_untrusted", "clock", "note", "a", "b", 0, 1.0)
        home.shows(
            status="unhealthy",
            conditions=[full, note],
            ledger=Balance(5, 1, 1, {"full": 3}),
            accelerator_c=61.3,
            domains={"audio": DomainSeen(False, "", None)},
            connected=False,
        )
        await eventually(lambda: house.state["status"] == "unhealthy", "the state")
        state = house.state
        assert (state["problem"], state["problem_store"], state["problem_sound"]) == (
            *("ON", "ON"),
            "OFF",
        )
        assert (state["problems"], state["dropped_records"], state["link"]) == (1, 3, "OFF")
        assert (state["accelerator_c"], state["domain_audio"]) == (61.5, "OFF")
        await eventually(lambda: "accelerator_c" in house.config["components"], "it has one now")
        problems = {"store_full store": "it is full; empty it"}
        await eventually(lambda: house.read(f"{ROOT}/problems") == problems, "in words")
        told = len(house.got)
        home.shows(cpu_c=50.1)  # less than half a degree
        looks = home.looks
        await eventually(lambda: home.looks > looks + 2, "it was looked at")
        assert len(house.got) == told


async def test_buttons_become_orders_and_nothing_else_does(
    tmp_path: Path, broker: Mosquitto, house: House
) -> None:
    house.press("restart", retain=True)  # would be pressed again at each connection
    home = Home(tmp_path, broker.url)
    async with home.shown():
        await eventually(lambda: "retained" in home.cause("order_refused"), "it is refused")
        house.press("restart", "press")
        await eventually(lambda: "not PRESS" in home.cause("order_refused"), "it is refused")
        assert not home.orders
        for button in ("restart", "sync_now", "sync_now"):
            house.press(button)
        await eventually(lambda: len(home.orders) == 3, "the orders")
        assert [one.name for one in home.orders] == ["device.restart", "sync.now", "sync.now"]
        assert {one.issuer for one in home.orders} == {"home_assistant"}
        assert len({one.id for one in home.orders}) == 3
        await eventually(lambda: not home.holds("order_refused"), "that is over")


async def test_all_is_told_again_when_home_assistant_begins(
    tmp_path: Path, broker: Mosquitto, house: House
) -> None:
    async with Home(tmp_path, broker.url).shown():
        await eventually(lambda: house.available == "online", "it is there")
        once = len(house.got)
        house.client.publish("homeassistant/status", "offline", 1)
        house.client.publish("homeassistant/status", "online", 1)
        await eventually(lambda: len(house.got) == once + 2 + 4, "all of it")
        assert {topic for topic, *_ in house.got[once + 2 :]} == set(
            topics_of("homeassistant", "dev", ROOT)
        )


async def test_one_that_is_cut_off_is_not_available(
    tmp_path: Path, broker: Mosquitto, house: House
) -> None:
    async with Proxy(broker) as proxy, Home(tmp_path, proxy.url).shown():
        await eventually(lambda: house.available == "online", "it is there")
        proxy.hang_up = True
        proxy.cut()
        await eventually(lambda: house.available == "offline", "the will")
        proxy.hang_up = False
        await eventually(lambda: house.available == "online", "it is back")


async def test_a_broker_that_refuses_a_topic_is_told_of(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite holdfast/#\ntopic read homeassistant/status\n")
    broker = Mosquitto(tmp_path, extra=f"acl_file {acl}\n")
    home = Home(tmp_path, broker.url)
    with running(broker):
        async with home.shown():
            await eventually(lambda: home.holds("broker_refused"), "the refusal")
            (refusal,) = home.conditions.all()
            assert refusal.subject == CONFIG
            assert "holdfast-dev-home-assistant" in refusal.remedy


async def test_a_broker_that_retains_nothing_is_asked_without_a_retained_will(
    tmp_path: Path,
) -> None:
    async with Stub(bytes([0, 0x9A, 0])) as stub, Home(tmp_path, stub.url).shown():
        await eventually(lambda: stub.connects > 1, "two tries")
    retains = [asked[7] & 32 for asked in stub.asked]
    assert (retains[0], retains[1]) == (32, 0)


async def test_a_domain_that_goes_is_removed_also_when_that_was_before_a_restart(
    tmp_path: Path, broker: Mosquitto, house: House
) -> None:
    home = Home(tmp_path, broker.url)
    two = {**SEEN.domains, "pictures-2": DomainSeen(True, "", None)}
    home.shows(domains=two, accelerator_c=40.0)
    parts = lambda: house.config.get("components", {})  # noqa: E731
    async with home.shown():
        await eventually(lambda: "domain_pictures-2" in parts(), "both")
        home.shows(domains=SEEN.domains)
        only = {"platform": "binary_sensor"}  # for Home Assistant: to be removed
        await eventually(lambda: parts()["domain_pictures-2"] == only, "it is removed")
        home.shows(domains=two)
        await eventually(lambda: "name" in parts()["domain_pictures-2"], "it is back")
    house.lies.clear()
    home.shows(domains=SEEN.domains, accelerator_c=None)
    async with home.shown():
        await eventually(lambda: house.available == "online", "it is there")
        assert parts()["domain_pictures-2"] == only
        assert "name" in parts()["accelerator_c"]  # not read yet, which is no reason to remove it


async def test_what_was_announced_is_taken_back(
    tmp_path: Path, broker: Mosquitto, house: House
) -> None:
    home = Home(tmp_path, broker.url)
    async with home.shown():
        await eventually(lambda: house.available == "online", "it is there")
    book = Book(tmp_path / "home_assistant.json")
    book.put_off()
    assert book.former
    done = Withdrawal(book.former.topics, 5.0, book.forget_former)
    await home.line(book.former.place, done, "home_assistant_down").run()
    with House(broker.port) as late:
        late.client.publish("end", "", 1)
        await eventually(lambda: "end" in late.lies, "all that is retained")
        assert set(late.lies) == {"end"}
    assert not list(tmp_path.glob("home_assistant*"))
    assert not home.holds("home_assistant_down")


def test_the_book_outlives_a_restart_and_a_file_that_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "home_assistant.json"
    home = Home(tmp_path, "mqtt://nowhere")
    kept = Announced(home.place("home_assistant", home.settings), ["a"], {"b": "sensor"})
    path.write_bytes(msgspec.json.encode(kept))
    assert Book(path).kept == kept
    Book(path).put_off()
    assert (Book(path).kept, Book(path).former) == (None, kept)
    path.write_bytes(b"{")
    assert Book(path).kept is None
    assert "is not taken back" in caplog.text


def test_two_devices_never_share_an_id() -> None:
    names = ["a.b", "a_b", "a-b", "a..b", "dev"]
    made = [object_id(name) for name in names]
    assert len(set(made)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", one) for one in made)
