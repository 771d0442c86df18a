"""`holdfast tokens`: what it shows, and that what it shows is true, of a real agent."""

import json
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from agent.api.entry.tokens import FORM
from tests.api.house import Pair
from tests.api.test_server import Doors
from tests.outside import DEADLINE_S, as_json, free_port, holdfast, program, running


def curled(*arguments: str) -> tuple[int, str]:
    """The answer's status, and what stands in it."""
    command = [program("curl", "curl"), "-s", "-w", "\n%{http_code}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@pytest.fixture
def device(tmp_path: Path) -> Doors:
    return Doors(
        tmp_path, {"api": {"port": free_port(), "socket": str(tmp_path / "holdfast.sock")}}
    )


def test_a_token_from_its_making_to_its_end(device: Doors) -> None:
    def tokens(*arguments: str) -> subprocess.CompletedProcess[str]:
        return holdfast("tokens", *arguments, "--config", str(device.config))

    with running(device):
        assert "make one" in tokens("ls").stdout
        made = tokens("create", "line 4 [bold]", "--scope", "read", "--scope", "infer")
        assert made.returncode == 0, made.stderr
        text = made.stdout.splitlines()[0]
        assert FORM.fullmatch(text)
        assert "line 4 [bold] may read, infer" in made.stdout
        (line,) = [line for line in made.stdout.splitlines() if line.startswith("try it:")]
        _, *arguments = shlex.split(line.removeprefix("try it:"))
        status, said = curled(*arguments)
        wanted = {"name": "line 4 [bold]", "scopes": ["read", "infer"]}
        assert (status, json.loads(said)) == (200, wanted)

        kept = device.store.with_name("tokens.json")
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        (row,) = as_json(tokens("ls", "--json"))["tokens"]
        assert {key: row[key] for key in wanted} == wanted
        assert row["id"] in tokens("ls").stdout
        assert text not in tokens("ls").stdout + kept.read_text() + device.log.read_text()

        device.kill()
        device.start()
        assert curled(*arguments)[0] == 200, "it outlasts the agent"
        url = arguments[-1].replace("session", "status")
        assert curled(*arguments[:-1], url)[0] == 200
        assert curled(*arguments[:-1], "-X", "POST", f"{url}/../domains/audio/restart")[0] == 403

        gone = tokens("revoke", row["id"])
        assert (gone.returncode, gone.stdout) == (0, f"token {row['id']} lets nobody in\n")
        assert curled(*arguments[:-1], url)[0] == 401
        again = tokens("revoke", row["id"])
        assert again.returncode == 1
        assert "try: see holdfast tokens ls" in again.stderr
        assert text not in device.log.read_text()


def test_the_command_that_it_shows_works_beyond_the_loopback_too(tmp_path: Path) -> None:
    pair, port = Pair(tmp_path), free_port()
    pair.write()
    files = {"certificate_file": str(pair.certificate), "key_file": str(pair.key)}
    api = {"host": "0.0.0.0", "port": port, "tls": files}
    device = Doors(tmp_path, {"api": {"socket": str(tmp_path / "holdfast.sock"), **api}})
    with running(device):
        create = ("tokens", "create", "far", "--scope", "read", "--config", str(device.config))
        made = holdfast(*create).stdout
        (line,) = [line for line in made.splitlines() if line.startswith("try it:")]
        _, *arguments = shlex.split(line.removeprefix("try it:"))
        assert curled("--cacert", str(pair.authority.file), *arguments)[0] == 200, line


def test_what_cannot_be_made_is_said(device: Doors) -> None:
    with running(device):
        for arguments in (
            ("x\n", "--scope", "read"),
            ("", "--scope", "read"),
            ("x" * 65, "--scope", "read"),
        ):
            done = holdfast("tokens", "create", *arguments, "--config", str(device.config))
            assert done.returncode == 1, arguments
            assert "try: " in done.stderr
        done = holdfast("tokens", "create", "x", "--config", str(device.config))
        assert done.returncode == 2
        assert "--scope" in done.stderr
        done = holdfast("tokens", "create", "x", "--scope", "root", "--config", str(device.config))
        assert done.returncode == 2
        assert "'root' is no scope; there are read, infer," in done.stderr
        made = ("tokens", "create", "x", "--scope", "admin", "--json")
        document = as_json(holdfast(*made, "--config", str(device.config)))
        assert document.keys() == {"id", "name", "scopes", "token"}


def test_without_an_agent_it_says_so(device: Doors) -> None:
    done = holdfast("tokens", "ls", "--config", str(device.config))
    assert done.returncode == 3
