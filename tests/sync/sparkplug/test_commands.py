"""What a host writes becomes an order of the journal, or is refused and told.

HOLDFAST_LONG=1 sends 100,000 commands of the 2,000 that are broken; HOLDFAST_SEED chooses which.
"""

import os
import random
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from agent.errors import NotNow
from agent.protocol.commands import Result
from agent.sync.plant.orders import ORDERS_MAX
from agent.sync.sparkplug.commands import WRITES as TAKEN
from agent.sync.sparkplug.node import EdgeNode
from tests.outside import Mosquitto
from tests.sync.rig import eventually
from tests.sync.site import beside
from tests.sync.sparkplug.judge import Host
from tests.sync.sparkplug.rig import Site
from tests.sync.sparkplug.tahu import command

LONG = os.environ.get("HOLDFAST_LONG") == "1"
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
BROKEN = 100_000 if LONG else 2_000


def beside_orders(node: EdgeNode) -> AbstractAsyncContextManager[None]:
    """Its orders are given, without a broker."""
    return beside(node.orders.run())


def refused(message: str) -> Result:
    return Result(id="x", name="sync.now", device="dev", state="refused", message=message)


WRITES: list[tuple[str, bool, str]] = [
    ("Node Control/Reboot", True, "device.reboot"),
    ("Node Control/Restart", True, "device.restart"),
    ("Sync/Paused", True, "sync.pause"),
    ("Sync/Paused", False, "sync.resume"),
    ("Sync/Now", True, "sync.now"),
]


async def test_writes_become_orders_by_name_and_by_alias(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    site = Site(tmp_path, broker.url)
    async with site.born():
        await eventually(lambda: host.births, "the birth")
        for number, (metric, value, _) in enumerate(WRITES):
            host.command(command((metric, value), timestamp_ms=1000 + number))
            host.command(command((host.alias(metric), value), timestamp_ms=2000 + number))
        host.command(command(("Sync/Now", False), ("Node Control/Reboot", False)))  # of themselves
        await eventually(lambda: len(site.orders) == 2 * len(WRITES), "the orders")
        verbs = [verb for *_, verb in WRITES for _ in range(2)]
        assert [one.name for one in site.orders] == verbs
        assert {one.issuer for one in site.orders} == {"sparkplug"}
        assert len({one.id for one in site.orders}) == len(verbs)
        await eventually(
            lambda: host.values["Orders/Last"] == "sync.now accepted", "what became of it is told"
        )
        assert not site.holds("order_refused")


async def test_the_same_message_has_one_id_and_one_without_a_time_its_own(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    site = Site(tmp_path, broker.url)
    async with site.born():
        await eventually(lambda: host.births, "the birth")
        for timestamp_ms in (7, 7, None, None):
            host.command(command(("Sync/Now", True), timestamp_ms=timestamp_ms))
        await eventually(lambda: len(site.orders) == 4, "the orders")
        once, again, *others = (one.id for one in site.orders)
        assert once == again
        assert len({once, *others}) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xff", "does not end"),
        (command(), "without a metric"),
        (command(("Health/Status", "fine")), "Health/Status, which takes no writes"),
        (command((999, True)), "alias 999"),
        (command(("Node Control/Reboot", "true")), "no Boolean to Node Control/Reboot"),
        (command(("Node Control/Reboot", None)), "no Boolean"),
        (command(("Sync/Now", True), ("Properties/Device", True)), "Properties/Device"),
    ],
)
async def test_what_is_no_order_is_refused_as_a_whole_and_told(
    tmp_path: Path, content: bytes, words: str
) -> None:
    site = Site(tmp_path, "mqtt://127.0.0.1:1")
    node = site.node()
    async with beside_orders(node):
        node.heard(node.ncmd, content)
        (refusal,) = site.conditions.all()
        assert refusal.name == "order_refused"
        assert words in refusal.cause
        assert refusal.remedy
        node.heard(node.ncmd, command(("Sync/Paused", True)))
        await eventually(lambda: not site.conditions.all(), "one that is taken ends it")
        assert [one.name for one in site.orders] == ["sync.pause"]


async def test_a_retained_command_is_not_carried_out_at_each_connection(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    host.command(command(("Node Control/Reboot", True)), retain=True)
    site = Site(tmp_path, broker.url)
    async with site.born():
        await eventually(lambda: "retained" in site.cause("order_refused"), "the refusal")
        await eventually(lambda: host.births, "the birth")
        assert not site.orders


async def test_what_the_journal_refuses_is_told(tmp_path: Path) -> None:
    site = Site(tmp_path, "mqtt://127.0.0.1:1")
    node = site.node()
    async with beside_orders(node):
        for answer, words in (
            (NotNow("sending is paused", "resume it"), "sending is paused"),
            (refused("it must be signed"), "it must be signed"),
        ):
            site.answer = answer
            node.heard(node.ncmd, command(("Sync/Now", True)))
            await eventually(lambda: words in site.cause("order_refused"), "told")  # noqa: B023
            assert words in node.orders.last


async def test_orders_that_wait_are_bounded(tmp_path: Path) -> None:
    site = Site(tmp_path, "mqtt://127.0.0.1:1")
    node = site.node()  # nobody gives its orders
    for _ in range(ORDERS_MAX):
        node.heard(node.ncmd, command(("Sync/Now", True)))
    assert not site.conditions.all()
    node.heard(node.ncmd, command(("Sync/Now", True)))
    assert f"{ORDERS_MAX} orders wait already" in site.cause("order_refused")


async def test_no_command_however_broken_is_an_order_that_nobody_gave(tmp_path: Path) -> None:
    print(f"HOLDFAST_SEED={SEED}")
    chance, site = random.Random(SEED), Site(tmp_path, "mqtt://127.0.0.1:1")
    node, given = site.node(), list[str]()
    node.orders.give = lambda verb, *_, **__: given.append(verb)  # type: ignore[method-assign]
    names: list[str | int] = [*TAKEN, "Health/Status", "", 0, 3, 2**64 - 1]
    values = [True, False, None, 1, "true", 0.5]
    orders = refusals = 0
    for _ in range(BROKEN):
        some = [(chance.choice(names), chance.choice(values)) for _ in range(chance.randrange(3))]
        content = bytearray(command(*some))
        for _ in range(chance.randrange(3)):
            content[chance.randrange(len(content)) :][:1] = bytes([chance.randrange(256)])
            at = chance.randrange(len(content))
            content[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        given.clear()
        site.conditions.clear("order_refused", "sparkplug")
        node.heard(node.ncmd, bytes(content))
        refused = site.holds("order_refused")
        assert not (refused and given), bytes(content)
        assert set(given) <= {verb for verbs in TAKEN.values() for verb in verbs}
        orders, refusals = orders + bool(given), refusals + refused
    assert orders > BROKEN * 0.01
    assert refusals > BROKEN * 0.5
