"""The controller between a real Mosquitto, both databases, and devices that speak the protocol."""

import asyncio
from pathlib import Path

from agent.protocol import commands, twin
from agent.protocol.signing import Key
from fleet.control import book, known, twins
from tests.fleet.cluster import Cluster
from tests.fleet.control.rig import ControlProcess, asked, document, fleet, happens
from tests.fleet.process import IngestProcess, Line
from tests.fleet.sender import Sender
from tests.fleet.test_brokers import amqtt
from tests.outside import Mosquitto, free_port, running
from tests.sim.commanded import Commanded, Crew, failing, good, mute, refusing


async def test_orders_are_given_and_their_results_kept(tmp_path: Path, url: str) -> None:
    broker = Mosquitto(tmp_path)
    control = ControlProcess(tmp_path, broker.url, url)
    natures = {"press-1": good, "press-2": failing, "saw-1": refusing, "saw-2": mute}
    with running(broker, control):
        async with Crew([Commanded(name, broker.url, natures[name]) for name in natures]) as crew:
            where = ("--database", url)
            done = await fleet("tag", "add", "hall-1", "press-1", "press-2", "saw-1", *where)
            assert done.returncode == 0, done.stderr
            some = ("--tag", "hall-1", "--device", "saw-2")
            wait = ("--wait", "--timeout", "2s")
            told = await document("send", "sync.pause", *some, "--id", "o-1", *wait, *where)
            states = {one["device"]: one["state"] for one in told["commands"]}
            ended = {"press-1": "succeeded", "press-2": "failed", "saw-1": "refused"}
            assert states == {**ended, "saw-2": "sent"}
            code = (await fleet("send", "x", "--device", "press-2", "--wait", *where)).returncode
            assert code == 10
            code = (await fleet("send", "x", "--device", "press-1", "--wait", *where)).returncode
            assert code == 0
            listed = await document("commands", "--state", "refused", *where)
            assert {one["device"] for one in listed["commands"]} == {"saw-1"}
            assert set(crew.effects.values()) == {1}
            text = (await fleet("commands", *where)).stdout
            assert "not_allowed" in text
        assert control.stop() == 0


async def test_what_is_ordered_of_a_device_that_is_away_waits_for_it(
    tmp_path: Path, url: str
) -> None:
    broker = Mosquitto(tmp_path)
    control = ControlProcess(tmp_path, broker.url, url, "--resend-s", "3600")
    device, where = Commanded("press-1", broker.url), ("--database", url)
    with running(broker, control):
        await device.come()
        await device.leave()

        async def is_known_to_be_away() -> bool:
            return [one.online for one in await asked(url, known.devices)] == [False]

        await happens(is_known_to_be_away, "the controller heard it go")
        await fleet("send", "sync.pause", "--device", "press-1", "--id", "o-1", *where)
        await fleet("send", "sync.pause", "--device", "press-1", "--id", "o-2", *where)
        told = await document("status", "press-1", *where)
        assert (told["online"], told["open"]) == (False, 2)
        assert {one["state"] for one in told["commands"]} == {"waiting"}
        await device.come()
        done = await happens(lambda: _all(url, "succeeded"), "both were done")
        assert done == {"o-1", "o-2"}
        assert device.effects == {"o-1": 1, "o-2": 1}
        await device.leave()


async def _all(url: str, state: str) -> set[str]:
    found = await asked(url, book.found)
    return {one.id for one in found} if all(one.state == state for one in found) else set()


async def test_what_nobody_answered_is_published_again_and_done_once(
    tmp_path: Path, url: str
) -> None:
    broker = Mosquitto(tmp_path)
    control = ControlProcess(tmp_path, broker.url, url, "--resend-s", "1", "--lease-s", "1")
    where = ("--database", url)
    with running(broker, control):
        async with Crew([Commanded("press-1", broker.url, mute)]) as crew:
            (device,) = crew.devices
            await fleet("send", "sync.pause", "--device", "press-1", "--id", "o-1", *where)

            async def heard_thrice() -> bool:
                return len(device.heard) >= 3

            await happens(heard_thrice, "it was published again")
            device.nature = good
            device.journal.clear()  # as if what came before had been lost on its way
            await happens(lambda: _all(url, "succeeded"), "it was done")
            assert device.effects == {"o-1": 1}
            count = len(device.heard)
            await asyncio.to_thread(control.kill)
            control.start()
            assert await _all(url, "succeeded")
            assert len(device.heard) == count, "what ended is not given again"


async def test_a_signed_command_names_its_device_and_can_be_checked(tmp_path: Path) -> None:
    broker, url = Mosquitto(tmp_path), f"sqlite:///{tmp_path}/fleet.db"
    control = ControlProcess(tmp_path, broker.url, url)
    key, where = tmp_path / "fleet.key", ("--database", url)
    public = Key.kept(key).public
    with running(broker, control):
        async with Crew([Commanded("press-1", broker.url)]) as crew:
            options = ("--device", "press-1", "--sign", str(key), "--wait")
            done = await fleet("send", "device.reboot", *options, *where)
            assert done.returncode == 0, done.stderr
            order = commands.decode(crew.devices[0].heard[0])
    assert (order.by, order.command.device) == (public, "press-1")
    assert order.command.expires and order.command.issued
    done = await fleet("send", "x", *options, "--expires", "never", *where)
    assert (done.returncode, "must expire" in done.stderr) == (1, True)


async def test_twins_are_published_retained_and_reported_ones_kept(tmp_path: Path) -> None:
    broker, url = Mosquitto(tmp_path), f"sqlite:///{tmp_path}/fleet.db"
    control = ControlProcess(tmp_path, broker.url, url)
    where = ("--database", url)
    with running(broker, control):
        one = ("--device", "press-1", *where)
        key = tmp_path / "fleet.key"
        public = Key.kept(key).public
        first = '{"log_level": "debug", "sync_paused": true}'
        await fleet("twin", "set", first, "--enforce", "log_level", *one)
        second = ("twin", "set", '{"sync_paused": null}', "--merge", "--sign", str(key))
        assert (await fleet(*second, *one)).returncode == 0

        async def published() -> bool:
            return not (await asked(url, lambda one: twins.read(one, "press-1"))).due

        await happens(published, "the broker has it")
        async with Crew([Commanded("press-1", broker.url)]) as crew:
            (device,) = crew.devices

            async def wanted() -> bool:
                return bool(device.desired)

            await happens(wanted, "a device that comes later gets it")
            read = twin.decode(device.desired[-1])
            assert (read.by, read.desired.version, read.desired.device) == (public, 2, "press-1")
            assert read.desired.state == {"log_level": "debug"}
            assert read.desired.enforce == ["log_level"]
            await device.report(2)

            async def reported() -> bool:
                found = await asked(url, lambda one: twins.read(one, "press-1"))
                return found.reported is not None and found.reported.desired_version == 2

            await happens(reported, "what it says is kept")
        assert (await document("twin", "get", "press-1", *where))["by"] == public
        done = await fleet("twin", "set", "{}", "--if-version", "1", "--device", "press-1", *where)
        assert (done.returncode, "has version 2, not 1" in done.stderr) == (1, True)


async def test_whose_database_was_lost_goes_on_above_what_the_device_knows(tmp_path: Path) -> None:
    """What the device says of itself is retained: the new database hears it from the broker."""
    broker = Mosquitto(tmp_path)
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("lost", "new")]
    with running(broker):
        async with Crew([Commanded("press-1", broker.url)]) as crew:
            (device,) = crew.devices

            async def version() -> int:
                return twin.decode(device.desired[-1]).desired.version if device.desired else 0

            async def set_level(url: str, level: str) -> None:
                wish = f'{{"log_level": "{level}"}}'
                done = await fleet("twin", "set", wish, "--device", "press-1", "--database", url)
                assert done.returncode == 0, done.stderr

            with running(ControlProcess(tmp_path, broker.url, urls[0])):
                for number, level in enumerate(("debug", "info", "error"), 1):
                    await set_level(urls[0], level)

                    async def came(number: int = number) -> bool:
                        return await version() == number

                    await happens(came, "the device has it")
                await device.report(3)
            with running(ControlProcess(tmp_path, broker.url, urls[1])):

                async def known() -> bool:
                    found = await asked(urls[1], lambda one: twins.read(one, "press-1"))
                    return found.reported is not None

                await happens(known, "the new one hears what the device is at")
                await set_level(urls[1], "warning")

                async def above() -> bool:
                    return await version() == 4

                await happens(above, "it counts on where the lost one was")
            assert twin.decode(device.desired[-1]).desired.state == {"log_level": "warning"}


async def test_of_two_controllers_one_acts_and_the_other_takes_over(
    tmp_path: Path, url: str
) -> None:
    broker = Mosquitto(tmp_path)
    options = ("--lease-s", "1.5")
    first = ControlProcess(tmp_path, broker.url, url, *options)
    second = ControlProcess(tmp_path, broker.url, url, *options)
    where = ("--database", url)
    with running(broker, first):
        second.begin()
        try:

            async def stands_by() -> bool:
                return second.said("standing by") == 1

            await happens(stands_by, "the second stands by")
            async with Crew([Commanded("press-1", broker.url)]) as crew:
                (device,) = crew.devices
                first.kill()
                done = await fleet("send", "x", "--device", "press-1", "--wait", *where)
                assert done.returncode == 0, done.stderr + second.log.read_text()
                assert second.said("this controller acts") == 1
                assert sum(device.effects.values()) == 1
                first.begin()

                async def first_waits() -> bool:
                    return first.said("standing by") == 1

                await happens(first_waits, "the first stands by, back again")
                assert second.stop() == 0

                async def first_acts() -> bool:
                    return first.said("this controller acts") == 2

                await happens(first_acts, "it was handed over")
        finally:
            second.kill()


async def test_one_shot_without_a_database(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    with running(broker):
        natures = {"press-1": good, "press-2": failing}
        async with Crew([Commanded(name, broker.url, natures[name]) for name in natures]):
            direct = ("--direct", "--broker", broker.url)
            done = await fleet("send", "status", "--device", "press-1", *direct)
            assert done.returncode == 0, done.stderr
            both = ("--device", "press-1", "--device", "press-2", "--id", "o-9")
            told = await document("send", "status", *both, *direct)
            assert [one["state"] for one in told["commands"]] == ["succeeded", "failed"]
            nobody = ("--device", "press-3", "--timeout", "1s")
            assert (await fleet("send", "status", *nobody, *direct)).returncode == 11


async def test_the_broker_may_go_and_come_and_so_may_the_database(
    tmp_path: Path, cluster: Cluster
) -> None:
    broker, url = Mosquitto(tmp_path), cluster.new()
    control = ControlProcess(tmp_path, broker.url, url, "--resend-s", "1")
    where = ("--database", url)
    with running(broker, control):
        broker.kill()

        async def has_noticed() -> bool:
            return control.said("the connection ended") > 0

        await happens(has_noticed, "the controller has noticed")
        await fleet("send", "x", "--device", "press-1", "--id", "o-1", *where)
        broker.start()
        async with Crew([Commanded("press-1", broker.url)]) as crew:
            await happens(lambda: _all(url, "succeeded"), "it was done")
            await asyncio.to_thread(cluster.kill)
            try:

                async def says_so() -> bool:
                    return control.said("check that PostgreSQL runs") > 0

                await happens(says_so, "the controller says so")
            finally:
                await asyncio.to_thread(cluster.start)
            await fleet("send", "x", "--device", "press-1", "--id", "o-2", *where)
            await happens(lambda: _all(url, "succeeded"), "it was done, too")
            assert crew.effects == {("press-1", "o-1"): 1, ("press-1", "o-2"): 1}
        assert control.stop() == 0


async def test_an_mqtt_311_broker_serves_too(tmp_path: Path) -> None:
    port, url = free_port(), f"sqlite:///{tmp_path}/fleet.db"
    at = f"mqtt://127.0.0.1:{port}"
    control = ControlProcess(tmp_path, at, url, "--connect-timeout-s", "1", "--resend-s", "1")
    with amqtt(port), running(control):
        async with Crew([Commanded("press-1", at, v5=False)]) as crew:
            done = await fleet("send", "x", "--device", "press-1", "--wait", "--database", url)
            assert done.returncode == 0, done.stderr + control.log.read_text()
            assert list(crew.devices[0].effects.values()) == [1]


async def test_it_runs_beside_an_ingest_on_the_same_database(tmp_path: Path, url: str) -> None:
    broker, sender = Mosquitto(tmp_path), Sender("press-1")
    ingest = IngestProcess(tmp_path, broker.url, url)
    control = ControlProcess(tmp_path, broker.url, url)
    where = ("--database", url)
    with running(broker, ingest, control), Line(broker.port, sender) as line:
        async with Crew([Commanded("press-1", broker.url)]):
            line.send(sender.batch(range(1, 4)))
            line.marked(3)
            await fleet("tag", "add", "hall-1", "press-1", *where)
            done = await fleet("send", "x", "--tag", "hall-1", "--wait", *where)
            assert done.returncode == 0, done.stderr
            (told,) = (await document("devices", *where))["devices"]
            assert (told["records"], told["online"], told["tags"]) == (3, True, ["hall-1"])
            status = await document("status", "press-1", *where)
            assert [one["state"] for one in status["commands"]] == ["succeeded"]


async def test_what_the_broker_refuses_is_tried_again_and_holds_up_no_other(tmp_path: Path) -> None:
    acl, url = tmp_path / "acl", f"sqlite:///{tmp_path}/fleet.db"
    acl.write_text("topic readwrite #\ntopic deny holdfast/v1/press-1/cmd\n")
    broker = Mosquitto(tmp_path, extra=f"acl_file {acl}\n")
    control = ControlProcess(tmp_path, broker.url, url, "--resend-s", "1")
    where = ("--database", url)
    with running(broker, control):
        async with Crew([Commanded(f"press-{i}", broker.url) for i in (1, 2)]):
            await fleet("send", "x", "--device", "press-1", *where)
            done = await fleet("send", "x", "--device", "press-2", "--wait", *where)
            assert done.returncode == 0, done.stderr

            async def is_told() -> bool:
                return control.said("to press-1: the broker refused") >= 2

            await happens(is_told, "it is told, and tried again")
            acl.write_text("topic readwrite #\n")
            broker.reload()
            await happens(lambda: _all(url, "succeeded"), "it was done then")
