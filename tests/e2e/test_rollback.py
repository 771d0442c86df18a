"""A rollout to a real agent, and its way back: the bad version never serves again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.cli.client import Client
from agent.errors import HoldfastError
from tests.fleet.control.rig import ControlProcess, document, happens
from tests.inference.catalog.repository import describe, install, linear, pair
from tests.inference.domains.rig import FAULTY, marked, put
from tests.outside import Device, Mosquitto, running, until
from tests.updates.site import drop

DEVICE = "device-under-test"
ASK = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 1.0, 1.0, 1.0]}]}
WATCHED = {"deaths_max": 0, "calls_min": 1}


class Site:
    """A device on version 1 of the model m, and an office."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        put(folder / "models", 1)
        self._where = ("--database", f"sqlite:///{folder}/fleet.db")
        self.broker = Mosquitto(folder)
        self.control = ControlProcess(folder, self.broker.url, self._where[1])
        paths = {"path": str(folder / "models"), "drop_path": str(folder / "drop")}
        link = {"broker_url": self.broker.url, "ack_from": "broker", "backoff_s_min": 0.2}
        settings: dict[str, Any] = {
            "models": {**paths, "free_bytes_min": 0, "probation": WATCHED},
            "domains": {"d": {"models": ["m"], "restart_s_min": 0.01}},
        }
        self.device = Device(folder, {**settings, "link": link})
        self.api = Client(self.device.socket)

    def begin(self) -> None:
        until(lambda: self.serves() == 1, "the model serves")
        until(lambda: self.device.status()["link"]["connected"], "the link is up")

    def serves(self) -> int:
        """The version that answers a call; 0: none does."""
        try:
            return int(self.api.post("/v2/models/m/infer", ASK)["model_version"])
        except HoldfastError:
            return 0

    async def rollout(self, id_: str, made: Path, *options: str, probation_s: float = 0.1) -> None:
        whole = {"activate": True, "probation_s": probation_s}
        order = {**drop(self._folder, made, f"{id_}.tar"), **whole}
        path = self._folder / f"{id_}.json"
        path.write_text(json.dumps(order))
        back = ("--rollback", "model.rollback", *options)
        some = ("--device", DEVICE, "--args", f"@{path}", "--id", id_, "--pause-at", "1")
        await document("rollout", "start", "model.install", *some, *back, *self._where)

    async def told(self, id_: str, ask: bool = False) -> dict[str, Any]:
        """How the device ended this order; meanwhile its model is asked."""

        async def ended() -> Any:
            for _ in range(10 * ask):
                self.serves()
            some = ("--device", DEVICE, "--id", id_)
            (one,) = (await document("commands", *some, *self._where))["commands"]
            return one["ended_us"] and one

        found: dict[str, Any] = await happens(ended, f"{id_} ends")
        return found

    async def abort(self, id_: str) -> None:
        await document("rollout", "abort", id_, *self._where)


async def test_the_way_back_of_a_rollout_ends_on_the_version_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTY))
    made, site = tmp_path / "made", Site(tmp_path)
    with running(site.broker, site.control, site.device):
        site.begin()
        await site.rollout("good", put(made, 2))
        assert (await site.told("good"))["state"] == "succeeded"
        assert site.serves() == 2

        # It dies of its calls, and is taken back by its probation: the former one is the bad one.
        deadly = install(made, marked(linear(weight=3.0), "run 20"), version=3)
        await site.rollout("deadly", deadly, probation_s=600.0)
        told = await site.told("deadly", ask=True)
        assert "taken back: m/3" in told["message"], told
        back = await site.told("deadly.back")
        why = "nothing was done: m/3 of deadly does not serve"
        assert (back["state"], back["result"]["result"]["why"]) == ("succeeded", why)
        assert site.serves() == 2

        # It never served: what the way back would lead to is something else still.
        wrong = put(made, 4)
        x = np.ones((2, 4), np.float32)
        describe(wrong, golden=[pair(wrong, {"x": x}, {"y": 9 * x})])
        await site.rollout("wrong", wrong)
        assert (await site.told("wrong"))["state"] == "failed"
        back = await site.told("wrong.back")
        why = "nothing was done: no version that wrong activated is known here"
        assert back["result"]["result"] == {"why": why}
        assert site.serves() == 2

        # One that serves is taken back, where the rollout is given up.
        both = ("--rollback-on", "both", "--device", "never-there")
        await site.rollout("unloved", put(made, 5), *both)
        assert (await site.told("unloved"))["state"] == "succeeded"
        assert site.serves() == 5
        await site.abort("unloved")
        assert (await site.told("unloved.back"))["result"]["result"] == {
            **{"name": "m", "version": 2, "former": 5}
        }
        assert site.serves() == 2
