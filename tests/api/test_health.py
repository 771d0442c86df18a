"""What machines ask a real agent: live, ready, and whether its models really run."""

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.health.checks import smart
from bench.models import tiny, write
from tests.api.checked import whole
from tests.api.test_model_metrics import Board
from tests.outside import holdfast, running, until

BASE = "/api/v1/health"
# An hour, so that what hangs is not replaced before the check has met it.
PATIENT = {"call_timeout_s": 3600.0, "request_timeout_s": 3600.0}


class Asked(Board):
    """A board whose doors are closed over TCP, but for those that are open to all."""

    def configure(self) -> None:
        self.domains = {
            "some": {"models": ["tiny"], **PATIENT},
            "other": {"models": ["other"], **PATIENT},
        }
        super().configure()
        text = self.config.read_text()
        self.config.write_text(text.replace("api:", "api:\n  loopback_scopes: []"))

    def tcp(self, path: str, method: str = "GET") -> tuple[int, Any]:
        return _asked(http.client.HTTPConnection("127.0.0.1", self.port, 30), method, path)

    def smart(self) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = self.connected()
        return _asked(connection, "GET", f"{BASE}/smart")

    def fresh(self) -> tuple[int, dict[str, Any]]:
        """An answer that is not kept from before."""
        old = self.smart()[1]
        return until(lambda: _newer(self.smart(), old), "a new check")

    def calls(self, model: str) -> int:
        return int(self.values("holdfast_model_calls_total", model=model, outcome="ok"))

    def values(self, sample: str, **labels: str) -> float:
        return self.value(sample, **labels) or 0.0

    def text(self) -> str:
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = self.connected()
        connection.request("GET", "/metrics")
        said = connection.getresponse().read().decode()
        connection.close()
        return str(said)

    def connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        sock.connect(str(self.socket))
        return sock


def _newer(found: tuple[int, dict[str, Any]], old: dict[str, Any]) -> Any:
    same = (found[1]["took_ms"], found[1]["checks"]) == (old["took_ms"], old["checks"])
    return None if same else found


def _asked(connection: http.client.HTTPConnection, method: str, path: str) -> tuple[int, Any]:
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    whole().check(method, path, None, answer.status, answer.headers, body)
    return answer.status, json.loads(body) if body else None


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    found = Asked(tmp_path_factory.mktemp("asked"))
    with running(found):
        until(lambda: found.tcp(f"{BASE}/ready")[0] == 200, "it is ready")
        yield found


def checks(report: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """Those of a name, by subject."""
    return {one["subject"]: one for one in report["checks"] if one["name"] == name}


def test_live_and_ready_are_open_and_say_one_word(agent: Asked) -> None:
    assert agent.tcp(f"{BASE}/live") == (200, {"live": True})
    assert agent.tcp(f"{BASE}/ready") == (200, {"ready": True})
    assert agent.tcp(f"{BASE}/live", "HEAD") == (200, None)
    assert agent.tcp(f"{BASE}/live?x=1")[0] == 400
    assert agent.tcp(f"{BASE}/smart")[0] in (401, 403)
    assert agent.tcp(BASE)[0] in (401, 403)


def test_every_domain_runs_a_model(agent: Asked) -> None:
    before = {model: agent.calls(model) for model in ("tiny", "other", "speech")}
    misses = agent.values("holdfast_cache_misses_total", model="tiny")
    status, report = agent.fresh()
    assert status == 200
    assert set(checks(report, "inference")) == {"audio", "some", "other"}
    said = [one for one in report["checks"] if one["verdict"] != "pass"]
    assert not [one for one in said if one["name"] not in ("compute", "queue")], said
    assert set(checks(report, "loaded")) == {"audio/speech", "some/tiny", "other/other"}
    assert set(checks(report, "memory")) == {"agent", "audio", "some", "other"}
    assert set(checks(report, "compute")) == {"audio/speech", "some/tiny", "other/other"}
    assert report["status"] == "degraded", "the link is down"
    assert "link_down" in {one["name"] for one in report["conditions"]}
    for model, calls in before.items():
        assert agent.calls(model) > calls, "it was really asked"
    assert agent.values("holdfast_cache_misses_total", model="tiny") == misses


def test_many_who_ask_at_once_get_one_check(agent: Asked) -> None:
    calls, reports = agent.calls("tiny"), list[dict[str, Any]]()
    crowd = [threading.Thread(target=lambda: reports.append(agent.smart()[1])) for _ in range(8)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    # Two where the answer that was kept grew too old in between.
    assert len({one["took_ms"] for one in reports}) <= 2
    assert agent.calls("tiny") - calls <= 2


def test_a_domain_that_hangs_fails_in_time_and_the_others_pass(agent: Asked) -> None:
    pid = agent.status()["domains"]["some"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        status, report = until(lambda: _failing(agent.smart()), "it was found")
        assert status == 503
        assert report["status"] == "unhealthy"
        (failed,) = [one for one in report["checks"] if one["verdict"] == "fail"]
        assert (failed["name"], failed["subject"]) == ("inference", "some")
        assert failed["found"] == "no answer in time"
        assert failed["remedy"] == "holdfast domains trace some"
        assert checks(report, "inference")["other"]["verdict"] == "pass"
        assert failed["took_ms"] >= smart.DEADLINE_S * 1000 * 0.9
        said = holdfast("health", "-c", str(agent.config))
        assert report["conditions"], "the broker is not there"
        for one in report["conditions"]:
            assert f"{one['name']} ({one['subject']}) for " in said.stdout
        assert said.returncode == 5, said.stderr
        assert "no answer in time" in said.stdout
        assert agent.tcp(f"{BASE}/ready") == (200, {"ready": True}), "it takes calls, and waits"
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: agent.smart()[0] == 200, "it runs again")
    assert holdfast("health", "--json", "-c", str(agent.config)).returncode == 4


def _failing(found: tuple[int, dict[str, Any]]) -> Any:
    return found if found[0] == 503 else None


def test_a_domain_that_cannot_start_is_not_ready(tmp_path: Path) -> None:
    board = Asked(tmp_path)
    write(tmp_path / "models", "gone", tiny())
    (tmp_path / "models/gone/1/model.onnx").write_bytes(b"no model")
    text = board.config.read_text()
    board.config.write_text(text.replace("- other", "- gone"))
    with running(board):
        until(lambda: board.status()["domains"]["some"]["ready"], "the other one is ready")
        assert board.tcp(f"{BASE}/live") == (200, {"live": True})
        assert board.tcp(f"{BASE}/ready") == (503, {"ready": False})
        status, report = board.smart()
        assert status == 503
        assert checks(report, "reachable")["other"]["verdict"] == "fail"
        assert checks(report, "loaded")["other/gone"]["verdict"] == "fail"
        assert "other" not in checks(report, "inference")
