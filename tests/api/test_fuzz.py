"""schemathesis at every door of a whole agent: what the document allows, and what it does not.

Whatever is asked, nothing fails, each answer is as the document says, what breaks the document is
refused, the agent stays the one that it was, and its ledger balances.
"""

import os
import re
import subprocess
from pathlib import Path

from agent.records import Balance
from tests.api.scratch import Scratch
from tests.outside import HOLDFAST, ROOT, Checked, running, until

LONG = bool(os.environ.get("HOLDFAST_LONG"))
RUN_S = 600  # of the long form
SEED = int(os.environ.get("HOLDFAST_SEED", "7"))
# Checks that do not fit here: in place of `not_a_server_error` stands that of knocking.py,
# `ignored_auth` finds that loopback needs no token, `positive_data_acceptance` that a body
# which has the right form may yet say what cannot be (a model that is not there).
EXCLUDED = "not_a_server_error,ignored_auth,positive_data_acceptance"
KNOWN = {  # names that there are, mixed with any others
    "path.domain": ["d", "audio"],
    "path.model": ["m", "other", "speech"],
    "path.version": [1, 2, 3],
    "path.stream": ["inbox.raw", "inbox.segments"],
    "path.seq": [1, 2, 3, 4],
    "path.job": ["one", "two"],
    "path.source": ["inbox", "post"],
    "path.take": [1, 2],
    "query.source": ["post", "live"],
    "body.id": ["one", "two"],
    "body.model": ["m", "other"],
    "body.inputs[*].name": ["x"],
    "body.inputs[*].datatype": ["FP32", "INT64", "BYTES"],
}


def settings(folder: Path) -> Path:
    """The configuration of schemathesis."""
    # Most streams of events have no end, and some nothing to tell for long.
    lines = ["max-stream-events = 1", "request-timeout = 30.0"]
    lines += ["[[operations]]", 'include-path-regex = "/events$"', "request-timeout = 10.0"]
    for number, (where, values) in enumerate(KNOWN.items()):
        lines += [f"[dictionaries.known{number}]", f"values = {values!r}"]
        lines += [f'[parameters."{where}"]', f'dictionary = "known{number}"', "probability = 0.7"]
    path = folder / "schemathesis.toml"
    path.write_text("\n".join(lines))
    return path


def knock(folder: Path, port: int, *more: str) -> subprocess.CompletedProcess[str]:
    """Run schemathesis to its end."""
    command = [
        *(str(HOLDFAST.with_name("st")), "--no-color", "--config-file", str(settings(folder))),
        *("run", f"http://127.0.0.1:{port}/api/v1/openapi.json"),
        *("--seed", str(SEED), "--generation-database", "none", "--continue-on-failure"),
        *("--exclude-checks", EXCLUDED, "--suppress-health-check=all"),
    ]
    hooks = {"SCHEMATHESIS_HOOKS": "tests.api.knocking", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *more],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **hooks},
        check=False,
    )


def test_no_question_brings_a_door_to_fall(tmp_path: Path) -> None:
    device = Scratch(tmp_path)
    with running(device):
        device.settle()
        found = re.search(r"health +http://127\.0\.0\.1:(\d+)/", device.log.read_text())
        assert found is not None
        phases = "examples,coverage,fuzzing" + (",stateful" if LONG else "")
        bounds = ("--max-time", str(RUN_S)) if LONG else ("--max-examples", "4")
        done = knock(tmp_path, int(found[1]), "--phases", phases, *bounds)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not device.dead(), device.log.read_text()
        assert not re.findall(r"^<3>api: .*", device.log.read_text(), re.MULTILINE)
        assert all(Balance(**one).balanced for one in device.status()["ledger"].values())
        client = Checked(device.socket)
        client.post("/api/v1/outbox/verify?deep=true")
        until(lambda: not client.get("/api/v1/outbox/verify")["running"], "the store is counted")
        assert client.get("/api/v1/outbox/verify")["report"]["faults"] == []
