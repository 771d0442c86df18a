"""What to ask at each door, so that question and answer can be checked against the document."""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from agent.api.routes.page import FILES
from agent.protocol import ack
from tests.api.scratch import TENSOR, Scratch
from tests.outside import ROOT, until
from tests.sync.bundles import ack_bundle

JOB = {"model": "m", "id": "one", "inputs": [TENSOR]}


class Walk(Protocol):
    """Who asks an agent."""

    device: Scratch
    count: int

    def send(self, method: str, url: str, body: Any = None) -> tuple[int, Any]:
        """The answer's status and document; a dict goes as JSON."""


class Example(NamedTuple):
    """What to ask; `found` fills the places of the path, with what the agent has.

    `others` are statuses that are right too, where it depends on who is faster.
    """

    body: Any = None
    query: str = ""
    headers: Mapping[str, str] | Callable[[Walk], Mapping[str, str]] = MappingProxyType({})
    status: int = 200
    found: Callable[[Walk], dict[str, object]] = lambda _: {}
    others: tuple[int, ...] = ()


def a_job(walk: Walk) -> dict[str, object]:
    """One that is done, with an id of its own."""
    walk.count += 1
    name = f"job-{walk.count}"
    assert walk.send("POST", "/api/v1/jobs", {**JOB, "id": name})[0] == 202
    url = f"/api/v1/jobs/{name}"
    until(lambda: walk.send("GET", url)[1]["state"] == "done", "the job is done")
    return {"job": name}


def a_waiting_job(walk: Walk) -> dict[str, object]:
    """One of a model that has many rows before it."""
    walk.count += 1
    name = f"job-{walk.count}"
    rows = {**TENSOR, "shape": [5000, 4], "data": [0] * 20_000}
    assert walk.send("POST", "/api/v1/jobs", {**JOB, "id": name, "inputs": [rows]})[0] == 202
    return {"job": name}


def a_command(walk: Walk) -> dict[str, object]:
    """One that has ended."""
    walk.count += 1
    order = {"name": "diagnose.list", "id": f"command-{walk.count}"}
    assert walk.send("POST", "/api/v1/commands?wait_s=20", order)[0] == 200
    return {"command": order["id"]}


def an_export(walk: Walk) -> dict[str, object]:
    status, state = walk.send("POST", "/api/v1/bundle/export", {})
    assert status == 201
    return {"export": state["export"], "part": 1}


def a_part(walk: Walk) -> dict[str, object]:
    places = an_export(walk)
    assert walk.send("POST", "/api/v1/bundle/export/{export}/{part}".format(**places))[0] == 200
    return places


def a_record(walk: Walk) -> dict[str, object]:
    page = walk.send("GET", "/api/v1/outbox/inbox.segments")[1]
    return {"stream": "inbox.segments", "seq": page["records"][0]["seq"]}


def an_ack(walk: Walk) -> bytes:
    epoch = walk.device.status()["store"]["epoch"]
    return ack_bundle(ack.Ack({epoch: {}}), device="device-under-test")


def a_token(walk: Walk) -> dict[str, Any]:
    status, made = walk.send("POST", "/api/v1/tokens", {"name": "line 4", "scopes": ["read"]})
    assert status == 201
    return {"id": made["id"], "token": made["token"]}


def a_take(walk: Walk) -> dict[str, object]:
    status, told = walk.send("POST", "/api/v1/audio?source=post&name=a-take&wait_s=60", SOUND)
    assert status in (200, 202)
    return {"source": told["source"], "take": told["take"]}


def a_segment(walk: Walk) -> dict[str, Any]:
    return dict(walk.send("GET", "/api/v1/audio/segments?count=1")[1]["segments"][0])


def its_tag(walk: Walk) -> dict[str, str]:
    return {"If-None-Match": f'"{a_segment(walk)["sha256"]}"'}


def binary() -> tuple[bytes, dict[str, str]]:
    head = {**TENSOR, "parameters": {"binary_data_size": 16}}
    del head["data"]
    asked = {"inputs": [head], "parameters": {"binary_data_output": True}}
    text = json.dumps(asked).encode()
    return text + bytes(16), {"Inference-Header-Content-Length": str(len(text))}


SOUND = next((ROOT / "samples").rglob("*.flac")).read_bytes()
RAW, RAW_HEADERS = binary()
ASKED = {"inputs": [TENSOR]}
LATER = {"Prefer": "respond-async"}
SOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
ANY = [Example()]
M = Example(ASKED, found=lambda _: {"model": "m", "version": 2})
OF_M = [M._replace(body=None)]
STREAM = Example(found=lambda _: {"stream": "inbox.raw"})
SEGMENT = Example(found=a_segment)
FILE = [Example(), Example(headers={"If-None-Match": "*"}, status=304)]
# By operationId; a door that may be asked in several ways has several.
EXAMPLES: dict[str, list[Example]] = {
    "get_health": ANY,
    "get_status": ANY,
    "get_health_live": ANY,
    "get_health_ready": ANY,
    "get_health_smart": ANY,
    "get_conditions": ANY,
    "get_events": ANY,
    "get_support": [Example()],
    "get_logs": [Example(), Example(query="count=5&level=info&after=1")],
    "get_logs_events": [
        Example(query="after=0"),
        Example(query="level=debug", headers={"Last-Event-ID": "1"}),
    ],
    "get_metrics": [Example(), Example(headers={"Accept": "application/openmetrics-text"})],
    **{f"get{'_'.join(path.split('/'))}": FILE for path in FILES if path != "/"},
    "get_page": FILE,
    "get_config": ANY,
    "get_config_document": [Example(), Example(query="number=1")],
    "get_tokens": ANY,
    "post_tokens": [Example({"name": "line 5", "scopes": ["read", "infer"]}, status=201)],
    "delete_tokens_id": [Example(found=a_token)],
    "post_commands": [
        Example({"name": "diagnose.list"}, "wait_s=20"),
        Example({"name": "diagnose", "args": {"check": "clock"}}, status=202, others=(200,)),
        Example({"name": "nosuch"}, status=400),
        # What is applied is on trial, and then confirmed; nothing of it takes a restart.
        *(
            Example({"name": f"config.{name}", "args": args}, "wait_s=20")
            for name, args in (
                ("apply", {"patch": {"jobs": {"jobs_max": 7}}, "dry_run": True}),
                ("apply", {"patch": {"log_level": "debug"}, "confirm_s": 1, "why": "to see more"}),
                ("confirm", {}),
                ("rollback", {"number": 1}),
            )
        ),
        Example({"name": "commands.cancel", "args": {"id": "nosuch"}}, status=409),
    ],
    "delete_commands_command": [
        Example(status=409, found=a_command),
        Example(status=404, found=lambda _: {"command": "nosuch"}),
    ],
    "get_commands": [Example(), Example(query="count=2&before=3")],
    "get_commands_catalogue": ANY,
    "get_commands_refusals": [Example(), Example(query="count=1")],
    "get_commands_command": [Example(found=a_command), Example(query="wait_s=1", found=a_command)],
    "get_twin": ANY,
    "get_session": ANY,
    "post_session": [
        Example(lambda walk: {"token": a_token(walk)["token"]}),
        Example({"token": "hf_no-such-token"}, status=401),
    ],
    "delete_session": ANY,
    "get_v2": ANY,
    "get_v2_health_live": ANY,
    "get_v2_health_ready": ANY,
    "get_v2_models_stats": ANY,
    **{
        f"get_v2_models_model{version}{rest}": OF_M
        for version in ("", "_versions_version")
        for rest in ("", "_ready", "_config", "_stats")
    },
    "post_v2_repository_index": [Example({}), Example({"ready": True})],
    "get_openapi.json": ANY,
    "post_v2_models_model_infer": [
        M,
        M._replace(body=RAW, headers=RAW_HEADERS),
        M._replace(body={**ASKED, "id": "not-waited-for"}, headers=LATER, status=202),
    ],
    "post_v2_models_model_versions_version_infer": [M, M._replace(headers=LATER, status=400)],
    "post_infer_batch": [
        Example({"requests": [{"model": "m", **ASKED}, {"model": "none"}], "timeout_s": 60})
    ],
    "post_audio": [
        Example(SOUND, query="source=post&wait_s=60"),
        Example(SOUND, query="source=post&name=later&wait=false", status=202, others=(200,)),
        Example(b"", query="source=post", status=400),
    ],
    "get_audio_takes_source_take": [Example(found=a_take)],
    "get_audio_segments": [Example(), Example(query="count=1")],
    "get_audio_segments_stream_seq": [
        SEGMENT,
        SEGMENT._replace(headers={"Range": "bytes=0-9"}, status=206),
        SEGMENT._replace(headers={"Range": "bytes=99999999-"}, status=416),
        SEGMENT._replace(headers=its_tag, status=304),
    ],
    "get_audio_stream": [
        Example(query="source=live&keep=false", headers=SOCKET, status=101),
        Example(status=400),
    ],
    "get_ledger": ANY,
    "get_outbox": ANY,
    "post_outbox_verify": [Example(status=202, query="deep=true"), Example(status=202)],
    "get_outbox_verify": ANY,
    "get_outbox_stream": [STREAM, STREAM._replace(query="from=1&count=5&dead=false")],
    "get_outbox_stream_seq": [Example(found=a_record)],
    "post_outbox_stream_retry": [STREAM._replace(body={})],
    "get_sync": ANY,
    "post_sync_now": [Example({}), Example({"unlimited_s": 1})],
    "post_sync_pause": [Example({"for_s": 3600}), Example()],
    "post_sync_resume": [Example({})],
    "post_sync_limit": [
        Example({"rate_bytes_per_s_max": 65536, "for_s": 60}),
        Example({"rate_bytes_per_s_max": None}),
    ],
    "get_accelerators": ANY,
    "get_power": ANY,
    "get_watchdog": ANY,
    "get_watchdog_history": ANY,
    "post_watchdog_resume": ANY,
    # A part of it would stand still for the doors that come after: tests/e2e/test_watchdog.py.
    "post_watchdog_test": [Example({"part": "nothing"}, status=404)],
    "get_watchdog_resets": ANY,
    "post_watchdog_disarm": [Example({"for_s": 60}), Example({"for_s": 0}, status=400)],
    "post_watchdog_arm": ANY,
    "get_bundle_key": ANY,
    "post_bundle_export": [Example({}, status=201), Example(status=201)],
    "get_bundle_export": [Example(found=an_export)],
    "post_bundle_export_export_part": [Example(found=an_export)],
    "post_bundle_export_export_part_kept": [Example(found=a_part)],
    "post_bundle_ack": [Example(an_ack)],
    "post_jobs": [Example(JOB, status=202), Example(JOB)],
    "get_jobs": [Example(), Example(query="from=1&count=10&state=done")],
    "get_jobs_job": [Example(found=a_job)],
    "get_jobs_job_events": [Example(found=a_job)],
    "delete_jobs_job": [Example(found=a_job)],
    "get_jobs_job_result": [
        Example(found=a_job),
        Example(query="binary_data_output=true", found=a_job),
    ],
    "post_jobs_job_cancel": [Example(found=a_waiting_job)],
    "get_domains": ANY,
    "get_domains_domain_trace": [Example(query="model=m", found=lambda _: {"domain": "d"})],
    "post_domains_apply": ANY,
    "get_models": ANY,
    "post_models_model_load": [M._replace(body={"version": 1}), M._replace(body={})],
    "post_models_model_rollback": [M._replace(body=None)],
    "post_models_model_unload": [M._replace(body=None)],
    "post_v2_repository_models_model_load": [
        M._replace(body={"parameters": {"version": 1}}),
        M._replace(body={}),
    ],
    "post_v2_repository_models_model_unload": [M._replace(body={})],
    # Last: they end what others need.
    "post_domains_domain_restart": [Example(status=202, found=lambda _: {"domain": "d"})],
    "post_outbox_stream_drop": [STREAM._replace(body={"first": 1, "reason": "the test"})],
}
