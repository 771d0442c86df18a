"""Models that go wrong while they serve, through the doors of a real agent: each is contained."""

import http.client
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.errors import HoldfastError
from agent.inference import breaker
from bench.models import loop, not_numbers, write
from tests.inference.catalog.repository import install, linear, opsets
from tests.inference.domains.rig import FAULTY, marked, put
from tests.outside import ROOT, Checked, Device, holdfast, running, until

LONG = os.environ.get("HOLDFAST_LONG") == "1"
FEW = 4
LONG_TURNS = 2_000_000_000
OWN_RUNS = 3 + 5  # those of a warm-up and of a proof
RULES = {"restart_s_min": 0.01, "restart_s_max": 0.02, "quarantine_after": 100_000}


class Reply(NamedTuple):
    status: int
    document: dict[str, Any]
    retry_after: str | None

    @property
    def value(self) -> float:
        found: float = self.document["outputs"][0]["data"][0]
        return found

    @property
    def model(self) -> str:
        """Its name."""
        found: str = self.document["model_name"]
        return found


class Site:
    """An agent, and a client of its models."""

    def __init__(self, device: Device) -> None:
        self.device = device
        line = next(x for x in device.log.read_text().splitlines() if "health   http" in x)
        self.port = int(line.split("127.0.0.1:")[1].split("/")[0])

    def ready(self) -> bool:
        """All domains."""
        return all(one["ready"] for one in self.device.status()["domains"].values())

    def ask(self, model: str, data: list[float], **tensor: Any) -> Reply:
        """One call."""
        timeout_s = tensor.pop("timeout_s", 60.0)
        given = {"name": "x", "datatype": "FP32", "shape": [1, len(data)], "data": data, **tensor}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [given]}))
            answer = connection.getresponse()
            body = json.loads(answer.read())
            return Reply(answer.status, body, answer.getheader("Retry-After"))
        finally:
            connection.close()

    def turns(self, count: int, **more: Any) -> Reply:
        """A call to the loop, which takes as long as one likes."""
        return self.ask("turns", [count], name="turns", datatype="INT64", shape=[1], **more)

    def good(self) -> None:
        """The model that nothing is wrong with answers."""
        reply = self.ask("good", [3.0] * 4)
        assert (reply.status, reply.value) == (200, 3.0)

    def state(self, model: str) -> str:
        """Of its breaker."""
        found: str = self.device.status()["models"][model]["breaker"]
        return found

    def pid(self, domain: str) -> int | None:
        found: int | None = self.device.status()["domains"][domain]["pid"]
        return found


def gather(rows: int = 4) -> onnx.ModelProto:
    """y = table[x]: it errs on what is beyond the table."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "i"], ["y"]),
        ],
        "gather",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.arange(rows, dtype=np.float32), "table")],
    )
    return helper.make_model(graph, opset_imports=opsets(), ir_version=10)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Each model in a domain of its own."""
    folder = tmp_path_factory.mktemp("poisoned")
    root = folder / "models"
    put(root, 1, "good")
    put(root, 5, "standby")
    install(root, marked(linear(weight=1.0), f"run {OWN_RUNS + 3}"), "third")
    write(root, "turns", loop(16))
    install(root, gather(), "errs")
    install(root, gather(), "errs-to", fallback="standby")
    # Its zeros are good, so that it is let in; what is below them is not.
    model = not_numbers()
    model.graph.node[0].op_type = "Sqrt"
    install(root, model, "nan", finite=True)
    names = [one.name for one in root.iterdir()]
    shutil.copytree(ROOT / "models/speech", root / "speech")
    domains = {name: {"models": [name], "threads": 1, **RULES} for name in names}
    domains["turns"]["call_timeout_s"] = 2  # for a call to begin on a machine that stalls
    device = Device(folder, {"domains": domains, "models": {"path": str(root)}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FAULTY))
        with running(device):
            found = Site(device)
            until(found.ready, "all domains are ready")
            yield found


def test_a_crash_at_the_third_request_is_one_dead_process_each_time(site: Site) -> None:
    """Its calls are idempotent: each is made again in the next process."""
    before, good = site.pid("third"), site.pid("good")
    for count in range(2 * FEW):
        reply = site.ask("third", [float(count)] * 4)
        while reply.status == 503:  # the next process is not there yet
            assert reply.retry_after is not None
            reply = site.ask("third", [float(count)] * 4)
        assert (reply.status, reply.value) == (200, count)
        site.good()
    assert site.pid("third") != before
    assert site.pid("good") == good
    assert site.device.status()["domains"]["third"]["restarts"] >= 1


def test_an_endless_loop_is_ended_and_told(site: Site) -> None:
    before = site.pid("turns")
    reply = site.turns(LONG_TURNS)
    assert reply.status == 500, reply
    assert "no answer within 2.0 s" in reply.document["error"]
    site.good()
    until(lambda: site.pid("turns") not in (before, None), "another process")
    until(lambda: site.turns(3).status == 200, "it answers again")


def test_who_goes_away_ends_the_run_and_not_the_process(site: Site) -> None:
    until(lambda: site.turns(3).status == 200, "it answers")
    before = site.pid("turns")
    for _ in range(FEW):
        with pytest.raises(TimeoutError):
            site.turns(LONG_TURNS, timeout_s=0.05)
        until(lambda: site.turns(3).status == 200, "the run was ended")
    assert site.pid("turns") == before


def test_what_is_not_finite_is_an_error(site: Site) -> None:
    assert site.ask("nan", [4.0] * 4).value == 2.0
    reply = site.ask("nan", [4.0, -1.0, 4.0, 4.0])
    assert reply.status == 500
    assert "output y is not finite" in reply.document["error"]
    assert site.ask("nan", [9.0] * 4).value == 3.0


def opened(site: Site, model: str) -> None:
    """Err until the breaker opens."""
    for _ in range(2 * breaker.CALLS_MIN):
        if site.state(model) == "open":
            return
        assert site.ask(model, [99.0] * 4).status == 500
        site.good()
    raise AssertionError("it never opened")


def test_a_model_that_errs_is_left_alone_for_a_while_and_comes_back(site: Site) -> None:
    assert site.ask("errs", [2.0] * 4).value == 2.0
    opened(site, "errs")
    reply = site.ask("errs", [2.0] * 4)
    assert reply.status == 503
    assert "its circuit breaker is open" in reply.document["error"]
    assert 1 <= int(reply.retry_after or 0) <= breaker.OPEN_S
    shown = holdfast("models", "ls", "--config", str(site.device.config)).stdout
    assert "breaker open" in shown
    site.good()
    until(lambda: site.state("errs") == "half-open", "it tries again")
    assert site.ask("errs", [99.0] * 4).status == 500  # the probe
    assert site.ask("errs", [2.0] * 4).status == 503
    until(lambda: site.state("errs") == "half-open", "it tries again")
    assert site.ask("errs", [2.0] * 4).value == 2.0
    assert site.state("errs") == "closed"


def test_a_fallback_answers_in_the_meantime_and_signs_with_its_own_name(site: Site) -> None:
    opened(site, "errs-to")
    for _ in range(FEW):
        reply = site.ask("errs-to", [2.0] * 4)
        assert (reply.status, reply.value) == (200, 10.0)
        assert reply.model == "standby"
    until(lambda: site.state("errs-to") == "half-open", "it tries again")
    reply = site.ask("errs-to", [2.0] * 4)
    assert (reply.value, reply.model) == (2.0, "errs-to")


def test_the_reason_of_a_refusal_reaches_the_terminal(site: Site) -> None:
    root = site.device.folder / "models"
    file = put(root, 2, "good") / "model.onnx"
    file.write_bytes(file.read_bytes()[:-9])
    done = holdfast("models", "load", "good/2", "--config", str(site.device.config))
    assert done.returncode == 1
    assert "good/2" in done.stderr
    assert "bytes" in done.stderr
    put(root, 2, "good", latency_ms_max=1e-5)
    with pytest.raises(HoldfastError, match="allows 1e-05"):
        Checked(site.device.socket, 60).post("/api/v1/models/good/load", {})
    site.good()


def test_a_kill_amid_a_swap_leaves_the_old_choice_or_the_new_one(tmp_path: Path) -> None:
    root = tmp_path / "models"
    put(root, 1)
    shutil.copytree(ROOT / "models/speech", root / "speech")
    settings = {"domains": {"d": {"models": ["m"]}}, "models": {"path": str(root)}}
    device = Device(tmp_path, settings)
    choices = device.store.with_name("models.json")
    pauses_s = [0.0, 0.3, 0.6, 0.8, 1.0, 1.5]
    for version, pause_s in enumerate(pauses_s if LONG else pauses_s[2:3], 2):
        with running(device):
            until(lambda: device.status()["domains"]["d"]["ready"], "it is ready")
            before = device.status()["models"]["m"]["version"]
            put(root, version)
            order = threading.Thread(target=_load, args=(device, version))
            order.start()
            order.join(pause_s)
            os.kill(device.pid, signal.SIGKILL)
            order.join()
        noted = json.loads(choices.read_text())["m"] if choices.exists() else None
        with running(device):
            until(lambda: device.status()["domains"]["d"]["ready"], "it is ready again")
            found = device.status()["models"]["m"]["version"]
            assert found == (noted["version"] if noted else version)
            assert found in (before, version)
            Checked(device.socket, 60).post("/api/v1/models/m/load", {"version": version})


def _load(device: Device, version: int) -> None:
    try:
        Checked(device.socket, 60).post("/api/v1/models/m/load", {"version": version})
    except HoldfastError:
        return  # the agent was killed first
