"""Versions of the configuration in a whole agent, with a real broker: hot, with a restart, cut off,
not able to start, killed, edited by hand. What becomes of each state is in tests/versions."""

import contextlib
import itertools
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli.client import Refused
from agent.errors import AgentUnreachable
from tests.cli.unprivileged import without_privileges
from tests.net.proxy import Proxy
from tests.outside import (
    HOLDFAST,
    ROOT,
    Checked,
    Device,
    Mosquitto,
    alive,
    free_port,
    running,
    until,
)

CONFIG = "/api/v1/config"
NUMBERS = itertools.count()


class Service(Device):
    """An agent that has the folder of a unit, and whose file of --config nobody may write to."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        super().__init__(folder, settings)
        self.etc = folder / "etc"
        self.etc.mkdir()
        self.config = self.config.rename(self.etc / "config.yaml")
        self.etc.chmod(0o500)
        self.config.chmod(0o400)
        (folder / "state").mkdir()
        environment = ["env", f"STATE_DIRECTORY={folder}/state"]
        self.command = [*without_privileges(), *environment, str(HOLDFAST), "run"]
        self.command += ["--config", str(self.config)]

    def edit(self, **changes: Any) -> None:
        """As root does."""
        text = yaml.safe_dump({**yaml.safe_load(self.config.read_text()), **changes})
        self.config.chmod(0o600)
        self.config.write_text(text)
        self.config.chmod(0o400)


@pytest.fixture
def broker(tmp_path: Path) -> Mosquitto:
    return Mosquitto(tmp_path)


def linked(broker: Mosquitto) -> dict[str, Any]:
    return {"link": {"broker_url": broker.url, "ack_from": "broker", "backoff_s_min": 0.1}}


def config(device: Device) -> dict[str, Any]:
    return Checked(device.socket).get(CONFIG)


def order(device: Device, name: str, args: dict[str, Any]) -> str:
    """Give an order; its id."""
    given = {"id": f"order-{next(NUMBERS)}", "name": name, "args": args}
    Checked(device.socket, 60.0).post("/api/v1/commands", given)
    return given["id"]


def ordered(device: Device, name: str, args: dict[str, Any]) -> dict[str, Any]:
    """What an order changes, once it has chosen a version. Raises Refused where it has not."""
    client, given = Checked(device.socket, 60.0), order(device, name, args)

    def chosen() -> dict[str, Any] | None:
        with contextlib.suppress(AgentUnreachable):  # it begins anew
            result = client.get(f"/api/v1/commands/{given}")
            if result["state"] == "failed":
                raise Refused({"error": result["message"]})
            mine = [one for one in config(device)["steps"] if one["order"] == given]
            return mine[-1] if mine else None
        return None

    step = until(chosen, f"{name} has chosen a version")
    assert step
    sections = step["change"]["sections"]
    return {
        "number": step["number"],
        "changed": list(sections),
        "restart": {one: why for one, why in sections.items() if why},
    }


def apply(device: Device, patch: dict[str, Any], **rules: Any) -> dict[str, Any]:
    return ordered(device, "config.apply", {"patch": patch, "confirm_s": 3.0, **rules})


def ended(device: Device, number: int) -> dict[str, Any]:
    """The last step of a version, once its trial is over."""

    def found() -> dict[str, Any] | None:
        with contextlib.suppress(AgentUnreachable):  # it begins anew
            steps = [one for one in config(device)["steps"] if one["number"] == number]
            return steps[0] if steps[0]["state"] in ("confirmed", "taken_back") else None
        return None

    step = until(found, f"version {number} is confirmed or taken back")
    assert step
    return step


def up(device: Device) -> bool:
    with contextlib.suppress(AgentUnreachable):
        return bool(device.status()["link"]["connected"])
    return False


class Flapping:
    """Cuts the line whenever the link has been up for longer than a second."""

    def __init__(self, line: Proxy, device: Device) -> None:
        self.cuts = 0
        self._line, self._device = line, device
        self._down_s = time.monotonic()

    def over(self) -> bool:
        """Look, and cut; whether the trial is over."""
        if not up(self._device):
            self._down_s = time.monotonic()
        elif time.monotonic() - self._down_s > 1.2:
            self._line.cut()
            self.cuts += 1
            self._down_s = time.monotonic()
        return config(self._device)["trial"] is None


def names(device: Device) -> set[str]:
    return {one["name"] for one in device.status()["conditions"]}


def test_a_link_that_is_cut_comes_back_and_one_that_is_not_stays(
    tmp_path: Path, broker: Mosquitto
) -> None:
    other = Mosquitto(tmp_path)
    device = Device(tmp_path, linked(broker))
    with running(broker, other, device):
        until(lambda: up(device), "the link is there")
        pid = device.pid
        cut = apply(device, {"link": {"broker_url": f"mqtt://127.0.0.1:{free_port()}"}})
        assert (cut["changed"], cut["restart"]) == (["link"], {})
        until(lambda: not up(device), "it is cut")
        step = ended(device, cut["number"])
        assert step["state"] == "taken_back"
        assert "the link was not there" in step["why"]
        until(lambda: up(device), "and comes back")
        assert device.status()["link"]["broker"] == broker.url
        assert "config_taken_back" in names(device)

        power = {"profile": "usual", "profiles": {"usual": {}}}
        patch = {"link": {"broker_url": other.url}, "log_level": "warning", "power": power}
        moved = apply(device, patch)
        assert moved["restart"] == {}
        assert ended(device, moved["number"])["state"] == "confirmed"
        assert device.status()["link"]["broker"] == other.url
        assert "config_taken_back" not in names(device)
        until(lambda: device.status()["power"]["profile"] == "usual", "the profile is in force")
        said = device.log.read_text()
        assert "version 2 of the configuration is taken back" in said
        assert "version 3 of the configuration stays" not in said, "the log tells less"
        assert device.pid == pid
        assert device.stop() == 0


def test_a_link_that_comes_and_goes_is_taken_back_and_one_that_came_late_stays(
    tmp_path: Path, broker: Mosquitto
) -> None:
    device = Device(tmp_path, linked(broker))
    with running(broker, device), Proxy(broker.port) as bad, Proxy(broker.port) as late:
        until(lambda: up(device), "the link is there")
        patch = {"link": {"broker_url": bad.url, "backoff_s_max": 0.2}}
        flapped = apply(device, patch, confirm_s=5.0)
        flapping = Flapping(bad, device)
        until(flapping.over, "its trial is over")
        step = ended(device, flapped["number"])
        assert step["state"] == "taken_back"
        assert "the link " in step["why"]
        assert flapping.cuts > 1, "it was there again and again"
        until(lambda: device.status()["link"]["broker"] == broker.url and up(device), "it is back")

        late.refusing = True
        patch["link"]["broker_url"] = late.url
        came = apply(device, patch, confirm_s=5.0)
        until(lambda: config(device)["trial"]["left_s"] < 2.4, "half of its time is over")
        assert config(device)["trial"]["faults"]
        late.heal()
        step = ended(device, came["number"])
        assert step["state"] == "confirmed", step["why"]
        assert device.status()["link"]["broker"] == late.url


def test_what_takes_a_restart_or_does_not_start_is_told_by_the_agent_that_comes(
    tmp_path: Path, broker: Mosquitto
) -> None:
    device = Device(tmp_path, linked(broker))
    with running(broker, device):
        until(lambda: up(device), "the link is there")
        done = apply(device, {"jobs": {"jobs_max": 7}})
        assert list(done["restart"]) == ["jobs"]
        step = ended(device, done["number"])
        assert step["state"] == "confirmed", step["why"]
        start = Checked(device.socket).get("/api/v1/watchdog")["start"]
        assert start["cause"] == "ordered", "it costs no budget"

        bad = apply(device, {"api": {"port": broker.port}})
        step = ended(device, bad["number"])
        assert step["state"] == "taken_back"
        assert "Address already in use" in step["why"]
        assert config(device)["in_force"] == done["number"]

        assert ordered(device, "config.rollback", {"number": 1})["number"] == 1
        assert ended(device, 1)["state"] == "confirmed"
        until(lambda: up(device), "the link is there")
        told = [(s["number"], s["state"]) for s in reversed(config(device)["steps"])]
        assert told == [
            *((1, "chosen"), (1, "confirmed")),
            *((2, "chosen"), (2, "started"), (2, "in_force"), (2, "confirmed")),
            *((3, "chosen"), (3, "started"), (3, "taken_back"), (2, "confirmed")),
            *((1, "chosen"), (1, "started"), (1, "in_force"), (1, "confirmed")),
        ]
        with pytest.raises(Refused, match=r"store\.path"):
            apply(device, {"store": {"path": "elsewhere.db"}})


def test_killed_on_trial_it_begins_on_it_twice_and_then_on_the_former(tmp_path: Path) -> None:
    device = Device(tmp_path, {})
    with running(device):
        assert apply(device, {"log_level": "debug"}, confirm_s=3600.0)["number"] == 2
        for _ in range(2):
            device.kill()
            device.start()
            until(lambda: config(device)["steps"][0]["state"] == "in_force", "it is on it")
            assert config(device)["in_force"] == 2
        device.kill()
        device.start()
        found = config(device)
        assert (found["live"], found["in_force"], found["trial"]) == (1, 1, None)
        assert "2 times" in found["taken_back"]["why"]


def test_an_end_that_was_asked_for_counts_against_no_trial(tmp_path: Path) -> None:
    device = Device(tmp_path, {})
    client = Checked(device.socket, 60.0)
    with running(device):
        apply(device, {"log_level": "debug"}, confirm_s=3600.0)
        for name in ("first", "second"):
            client.post("/api/v1/commands", {"id": name, "name": "device.restart"})

            def told(name: str = name) -> bool:
                with contextlib.suppress(AgentUnreachable):  # it begins anew
                    return bool(client.get(f"/api/v1/commands/{name}")["state"] == "succeeded")
                return False

            until(told, "the agent that comes tells it")
        until(lambda: config(device)["steps"][0]["state"] == "in_force", "it is on it")
        found = config(device)
        assert (found["live"], found["in_force"]) == (2, 2), found["taken_back"]
        assert found["trial"]["starts"] == 1, "this one"
        shown = client.get("/api/v1/commands")["commands"]
        (result,) = [one for one in shown if one["name"] == "config.apply"]
        assert result["state"] == "running", "the order goes on with it"


def test_a_service_is_on_what_its_file_says_and_never_dead_for_it(tmp_path: Path) -> None:
    device = Service(tmp_path, {})
    with running(device):
        assert config(device)["live"] == 1
        device.edit(log_level="debug")
        device.stop(signal.SIGTERM)
        device.start()
        until(lambda: config(device)["confirmed"] == 2, "the edit is a version, and confirmed")
        device.edit(log_level="loud")
        device.stop(signal.SIGTERM)
        device.start()
        assert config(device)["in_force"] == 2
        (held,) = [
            one for one in device.status()["conditions"] if one["name"] == "config_file_unusable"
        ]
        assert "log_level: unknown value 'loud'" in held["cause"]
        device.edit(log_level="info", api={"port": 0, "socket": str(device.socket), "hosts": ["a"]})
        device._process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        until(lambda: config(device)["live"] == 3, "it is read")
        until(lambda: "config_restart_due" in names(device), "it is said what waits")
        assert "config_file_unusable" not in names(device)
        assert list(config(device)["waits"]) == ["api"]
        assert list(device.etc.iterdir()) == [device.config]


def test_under_systemd_it_ends_to_be_started_again(tmp_path: Path) -> None:
    """By the status that Restart=on-failure counts as one; nobody listens here."""
    device = Device(tmp_path, {})
    device.command = ["env", f"NOTIFY_SOCKET={tmp_path}/notify", *device.command]
    with running(device):
        order(device, "config.apply", {"patch": {"jobs": {"jobs_max": 7}}})
        until(device.dead, "it has ended")
        assert device._process
        assert device._process.returncode == 80
        assert not alive(device.pid)
        unit = (ROOT / "provisioning/systemd/holdfast.service").read_text()
        assert "Restart=on-failure" in unit
        device.start()
        assert config(device)["in_force"] == 2
