"""The doors of a real agent: health over TCP, everything over the unix socket, nobody else."""

import http.client
import json
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.errors import ConfigError, HoldfastError
from tests.api.checked import whole
from tests.outside import HOLDFAST, Checked, Device, running, until

HEALTH = "/api/v1/health"


class Doors(Device):
    """An agent and where it listens."""

    @property
    def port(self) -> int:
        """The TCP port, as the log says it to the people."""
        line = r"health +http://127\.0\.0\.1:(\d+)/api/v1/health"
        found = until(lambda: re.search(line, self.log.read_text()), "the log names the port")
        return int(found[1])


class Answer(NamedTuple):
    status: int
    document: dict[str, Any]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    folder = tmp_path_factory.mktemp("agent")
    (folder / "inbox").mkdir()
    source = {"kind": "folder", "name": "inbox", "path": str(folder / "inbox")}
    device = Doors(folder, {"audio": {"sources": [source]}})
    with running(device):
        until(lambda: device.status()["domains"]["audio"]["ready"], "the domain is ready")
        yield device


def asked(
    connection: http.client.HTTPConnection, method: str, route: str, **headers: str
) -> Answer:
    """One request; the answer must be JSON."""
    connection.request(method, route, headers={k.replace("_", "-"): v for k, v in headers.items()})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    whole().check(method, route, None, response.status, response.headers, body)
    assert response.headers.get_content_type() == "application/json", body
    return Answer(response.status, json.loads(body) if body else {})


def over_tcp(agent: Doors, method: str, route: str, **headers: str) -> Answer:
    return asked(http.client.HTTPConnection("127.0.0.1", agent.port, 10), method, route, **headers)


def over_socket(agent: Doors, method: str, route: str, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(10)
    connection.sock.connect(str(agent.socket))
    return asked(connection, method, route, **headers)


def is_a_refusal(answer: Answer, status: int) -> bool:
    """Whether it is an error in the form of all our errors."""
    return answer.status == status and all(answer.document.get(k) for k in ("error", "hint"))


def domain(agent: Doors) -> dict[str, Any]:
    return agent.status()["domains"]["audio"]


def test_health_says_how_it_is(agent: Doors) -> None:
    status, health = over_tcp(agent, "GET", HEALTH)
    assert status == 200
    assert health["status"] == "degraded", "the broker is not there"
    assert health["uptime"] > 0
    assert health["active_requests"] == 1, "this one"
    (down,) = [c for c in health["conditions"] if c["name"] == "link_down"]
    assert down["severity"] == "warning"
    assert all(down[k] for k in ("subject", "cause", "remedy", "since_us"))
    assert down["age_s"] >= 0


def test_health_goes_on_counting(agent: Doors) -> None:
    before = over_tcp(agent, "GET", HEALTH).document["uptime"]
    until(lambda: over_tcp(agent, "GET", HEALTH).document["uptime"] > before, "uptime grows")


@pytest.mark.parametrize("door", [over_tcp, over_socket])
def test_both_doors_answer_reads(agent: Doors, door: Any) -> None:
    assert door(agent, "GET", HEALTH).status == 200
    status, document = door(agent, "GET", "/api/v1/status")
    assert status == 200
    assert {"status", "uptime", "conditions", "link", "ledger", "domains", "models", "store"} <= (
        document.keys()
    )


@pytest.mark.parametrize("by_socket", [False, True])
def test_both_doors_answer_a_scraper(agent: Doors, by_socket: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, 10)
    if by_socket:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(agent.socket))
    connection.request("GET", "/metrics", headers={"Host": "localhost"})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {family.name: family for family in text_string_to_metric_families(body)}
    down = {"name": "link_down", "subject": "link", "severity": "warning"}
    assert down in [sample.labels for sample in found["holdfast_condition"].samples]
    assert found["holdfast_uptime_seconds"].samples[0].value > 0
    assert agent.status()["store"]["flash"].keys() >= {"sources", "payload", "life_years"}


def test_head_is_answered_without_a_body(agent: Doors) -> None:
    assert over_tcp(agent, "HEAD", HEALTH) == Answer(200, {})


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "127.0.0.1.nip.io", "x@y"),
        *("evil@localhost", "evil:x@localhost:80", "localhost@evil.example"),
        *(
            "localhost:99999999",
            "localhost:65536",
            "localhost:x",
            "localhost:-1",
            "localhost:80:80",
        ),
        *("localhost/", "localhost?", "localhost#", "[localhost]", "[::1]x", "::1"),
    ],
)
def test_another_host_name_is_misdirected(agent: Doors, host: str) -> None:
    assert is_a_refusal(over_tcp(agent, "GET", HEALTH, Host=host), 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:65535", "[::1]:8080"])
def test_the_names_of_this_machine_are_good(agent: Doors, host: str) -> None:
    assert over_tcp(agent, "GET", HEALTH, Host=host).status == 200


@pytest.mark.parametrize("host", ["[", "[::1", "", "a b"])
def test_a_host_that_is_none_is_refused_in_our_form(agent: Doors, host: str) -> None:
    answer = over_tcp(agent, "GET", HEALTH, Host=host)
    assert is_a_refusal(answer, 421) or is_a_refusal(answer, 400), answer


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost.evil.example", "null", "x", "http://["]
)
@pytest.mark.parametrize("door", [over_tcp, over_socket])
def test_a_page_of_another_origin_is_refused(agent: Doors, door: Any, origin: str) -> None:
    assert is_a_refusal(door(agent, "GET", HEALTH, Origin=origin), 403)


def test_its_own_page_may_ask(agent: Doors) -> None:
    host = f"localhost:{agent.port}"
    assert over_tcp(agent, "GET", HEALTH, Host=host, Origin=f"http://{host}").status == 200


def test_what_changes_state_is_not_for_whoever_is_on_this_machine(agent: Doors) -> None:
    pid = domain(agent)["pid"]
    answer = over_tcp(agent, "POST", "/api/v1/domains/audio/restart")
    assert is_a_refusal(answer, 403)
    assert "socket" in answer.document["hint"]
    assert domain(agent)["pid"] == pid


def test_a_restart_over_the_socket_gives_the_domain_a_new_process(agent: Doors) -> None:
    before = domain(agent)
    answer = over_socket(agent, "POST", "/api/v1/domains/audio/restart")
    assert answer == Answer(202, {"domain": "audio", "restarting": True})
    after = until(
        lambda: (now := domain(agent))["ready"] and now["pid"] != before["pid"] and now,
        "another process is ready",
    )
    assert after["restarts"] == before["restarts"] + 1
    assert not psutil.pid_exists(before["pid"])


def test_a_domain_that_is_not_there_is_not_found(agent: Doors) -> None:
    answer = over_socket(agent, "POST", "/api/v1/domains/video/restart")
    assert is_a_refusal(answer, 404)
    assert "audio" in answer.document["hint"]


@pytest.mark.parametrize(
    "route", ["/none", "/api/v1/nothing", "/api/v1/health/x", "/../etc/passwd"]
)
@pytest.mark.parametrize("door", [over_tcp, over_socket])
def test_an_unknown_route_is_not_found(agent: Doors, door: Any, route: str) -> None:
    answer = door(agent, "GET", route)
    assert is_a_refusal(answer, 404)
    assert route.replace("/..", "") in answer.document["error"]
    assert "/api/v1/openapi.json" in answer.document["hint"]


@pytest.mark.parametrize(
    ("route", "meant"),
    [
        ("/api/v1/audio/takes", "/api/v1/audio/takes/{source}/{take}"),
        ("/api/v1/audio/takes/inbox", "/api/v1/audio/takes/{source}/{take}"),
        ("/api/v1/status/", "/api/v1/status"),
    ],
)
def test_a_path_that_ends_too_soon_is_told_how_it_goes_on(
    agent: Doors, route: str, meant: str
) -> None:
    answer = over_socket(agent, "GET", route)
    assert is_a_refusal(answer, 404)
    assert f"did you mean {meant}" in answer.document["hint"]


def test_a_wrong_method_is_not_allowed_and_the_right_ones_are_named(agent: Doors) -> None:
    answer = over_socket(agent, "POST", HEALTH)
    assert is_a_refusal(answer, 405)
    assert answer.document["error"] == f"{HEALTH} takes no POST"
    assert "it takes GET, HEAD;" in answer.document["hint"]
    answer = over_tcp(agent, "GET", "/api/v1/domains/audio/restart")
    assert is_a_refusal(answer, 405)
    assert "it takes POST;" in answer.document["hint"]


def test_the_socket_is_for_owner_and_group_alone(agent: Doors) -> None:
    mode = agent.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


def test_tcp_listens_on_the_loopback_alone(agent: Doors) -> None:
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == "LISTEN"]
    assert [a.ip for a in listening if a.port == agent.port] == ["127.0.0.1"]


def test_what_is_no_http_is_refused_and_the_agent_goes_on(agent: Doors) -> None:
    with socket.create_connection(("127.0.0.1", agent.port), 10) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n")
        assert b" 400 " in sock.recv(1000).splitlines()[0]
    assert over_tcp(agent, "GET", HEALTH).status == 200


def test_the_client_of_the_command_raises_a_refusal_with_its_hint(agent: Doors) -> None:
    with pytest.raises(HoldfastError, match="no domain 'video'") as caught:
        Checked(agent.socket).post("/api/v1/domains/video/restart")
    assert caught.value.hint == "known: audio"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path, {})


def test_a_socket_of_a_killed_agent_is_taken_over(device: Device) -> None:
    with running(device):
        device.kill()
        assert device.socket.exists()
        device.start()
        assert device.answers()


def test_the_socket_is_gone_when_the_agent_has_ended(device: Device) -> None:
    with running(device):
        assert device.stop() == 0
        assert not device.socket.exists()


def test_a_file_in_the_place_of_the_socket_is_not_deleted(device: Device) -> None:
    device.socket.write_text("something else")
    with pytest.raises(AssertionError, match=r"api\.socket"), running(device):
        pass
    assert device.socket.read_text() == "something else"


def test_a_socket_on_which_another_agent_serves_is_left_to_it(
    device: Device, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two stores, one socket: a copied configuration in which only the store was changed."""
    folder = tmp_path_factory.mktemp("other")
    other = Device(folder, {"api": {"port": 0, "socket": str(device.socket)}})
    with running(device), other.log.open("wb") as log:
        epoch = device.status()["store"]["epoch"]
        command = [str(HOLDFAST), "run", "--config", str(other.config)]
        with subprocess.Popen(command, stdout=log, stderr=log) as process:
            until(
                lambda: process.poll() is not None or "health" in other.log.read_text(),
                "the other agent has begun or given up",
            )
            process.kill()
        assert process.returncode == ConfigError.exit_code
        assert device.status()["store"]["epoch"] == epoch


def test_a_word_of_a_path_is_not_what_stands_in_a_place_of_another(agent: Doors) -> None:
    """GET on `drop` is not a look at the record of that name."""
    answer = over_socket(agent, "GET", "/api/v1/outbox/inbox.raw/drop")
    assert is_a_refusal(answer, 405)


@pytest.mark.parametrize(
    "route",
    [
        *("/api/v1/domains?x=1", "/metrics?x=1", "/api/v1/bundle/key?x=1"),
        *("/api/v1/jobs?state=null", "/api/v1/openapi.json?x=1"),
    ],
)
def test_a_parameter_that_a_door_does_not_know_is_refused(agent: Doors, route: str) -> None:
    answer = over_socket(agent, "GET", route)
    assert is_a_refusal(answer, 400) or route == "/metrics?x=1", answer
