"""`infer` that is not waited for, through the whole agent: a job, which outlasts a kill."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from bench import models
from tests.jobs.test_real import Asking
from tests.outside import Device, holdfast, running, until

LATER = {"Prefer": "respond-async"}
INFER = "/v2/models/tiny4/infer"
NUMBERS = [0.5, 1.0, -2.0, 3.0]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("later")
    models.write(folder / "models", "tiny4", models.identity())
    found = Device(
        folder,
        {
            "models": {"path": str(folder / "models")},
            "domains": {"numbers": {"models": ["tiny4"]}},
            "jobs": {"jobs_max": 5},
        },
    )
    with running(found):
        ready(found)
        yield found


def ready(device: Device) -> None:
    until(lambda: device.status()["domains"]["numbers"]["ready"], "the domain is ready")


def asked(
    device: Device, prefer: dict[str, str] | None = None, route: str = INFER, **more: Any
) -> tuple[int, Any, dict[str, str]]:
    one = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": NUMBERS}
    body = json.dumps({"inputs": [one], **more}).encode()
    status, said, headers = Asking(device).ask("POST", route, body, prefer or {})
    return status, json.loads(said), headers


def got(device: Device, route: str) -> Any:
    return json.loads(Asking(device).ask("GET", route)[1])


def done(device: Device, where: str) -> Any:
    until(lambda: got(device, where)["state"] == "done", "it is done")
    found = got(device, f"{where}/result")
    Asking(device).ask("DELETE", where)
    return found


def test_it_becomes_a_job_and_its_result_is_that_of_infer(device: Device) -> None:
    status, said, headers = asked(device, LATER, id="one")
    assert (status, said["request_id"]) == (202, "one")
    assert said["status"] in ("queued", "running", "done")
    assert headers["Preference-Applied"] == "respond-async"
    assert headers["Location"] == "/api/v1/jobs/one"
    assert got(device, "/api/v1/jobs/one")["class"] == "interactive"
    found = done(device, headers["Location"])
    status, now, headers = asked(device)
    assert (status, "Preference-Applied" in headers) == (200, False)
    assert found["outputs"] == now["outputs"]


@pytest.mark.parametrize(
    ("prefer", "status"),
    [
        ("respond-async", 202),
        ("handling=lenient, Respond-Async; foo=1, wait=10", 202),
        ("wait=10", 200),
        ("x=respond-async", 200),
    ],
)
def test_what_a_client_prefers(device: Device, prefer: str, status: int) -> None:
    found, _, headers = asked(device, {"Prefer": prefer}, parameters={"class": "batch"})
    assert found == status
    if status == 202:
        assert got(device, headers["Location"])["class"] == "batch"
        done(device, headers["Location"])


def test_the_same_id_twice_is_one_job(device: Device) -> None:
    first, second = (asked(device, LATER, id="twice") for _ in range(2))
    assert first[0] == second[0] == 202
    assert first[2]["Location"] == second[2]["Location"]
    assert asked(device, LATER, id="twice", parameters={"class": "batch"})[0] == 409
    done(device, first[2]["Location"])


@pytest.mark.parametrize(
    ("route", "more", "status", "word"),
    [
        ("/v2/models/tiny4/versions/1/infer", {}, 400, "version"),
        (INFER, {"parameters": {"sequence_id": 1}}, 400, "sequence_id"),
        (INFER, {"parameters": {"timeout": 1000}}, 400, "timeout"),
        (INFER, {"parameters": {"class": "soon"}}, 400, "class"),
        (INFER, {"id": "no id"}, 400, "$.id"),
        (INFER, {"inputs": []}, 400, "none"),
        ("/v2/models/nobody/infer", {}, 404, "nobody"),
    ],
)
def test_what_a_job_cannot_carry_is_said(
    device: Device, route: str, more: dict[str, Any], status: int, word: str
) -> None:
    found, said, _ = asked(device, LATER, route, **more)
    assert (found, word in said["error"]) == (status, True), said
    assert said["hint"]
    assert got(device, "/api/v1/jobs")["jobs"] == []


def test_it_outlasts_a_kill_of_the_agent(device: Device) -> None:
    _, _, headers = asked(device, LATER, id="kept")
    device.kill()
    device.start()
    ready(device)
    (one,) = done(device, headers["Location"])["outputs"]
    assert one["data"] == NUMBERS


def test_a_full_store_of_jobs_says_what_to_do(device: Device) -> None:
    where = [asked(device, LATER)[2]["Location"] for _ in range(5)]
    for one in where:
        until(lambda one=one: got(device, one)["state"] == "done", "it is done")
    status, said, headers = asked(device, LATER)
    assert (status, "jobs_max" in said["error"], "DELETE" in said["hint"]) == (507, True, True)
    assert "Retry-After" not in headers, "no time helps"
    for one in where:
        done(device, one)


def test_watch_shows_it_to_the_end(device: Device) -> None:
    asked(device, LATER, id="seen")
    found = holdfast("jobs", "watch", "seen", "--config", str(device.config))
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "done  1 of 1 row (100%)"
    found = holdfast("jobs", "watch", "seen", "--json", "--config", str(device.config))
    assert [json.loads(line)["state"] for line in found.stdout.splitlines()] == ["done"]
    done(device, "/api/v1/jobs/seen")
    found = holdfast("jobs", "watch", "seen", "--config", str(device.config))
    assert (found.returncode, "no job 'seen'" in found.stderr) == (1, True)
