"""`holdfast support-bundle`: one archive for whoever looks into the device (docs/support.md)."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from agent import VERSION, config_file, plain_file, whole_file
from agent.cli.client import Client
from agent.errors import AgentUnreachable, ConfigError, HoldfastError
from agent.masked import masked
from agent.support import MEMBER_BYTES_MAX, Origin, journal, machine, packed

# What an agent has beside its store, for people and for its next start.
FILES = (
    *("status.json", "watchdog.json", "starts.json", "ladder.json", "known-time.json", "hung.txt"),
    *("models.json", "trials.json"),
)
STEP_BYTES = 64 << 10


def write(config: Path, file: Path | None, as_json: bool) -> int:
    """Write the archive; the exit code. Raises HoldfastError where it cannot be written."""
    why: HoldfastError | None = None
    try:
        content = _of_the_agent(Client.of(config))
    except (ConfigError, AgentUnreachable) as error:
        why = error
        content = _of_the_disk(config)
    name = time.strftime("holdfast-support-%Y%m%dT%H%M%SZ.tar.gz", time.gmtime())
    file = file or Path(name)
    try:
        whole_file.replace(file, content, whole_file.Rights(0o600, os.geteuid(), os.getegid()))
    except OSError as error:
        raise HoldfastError(
            f"{file}: cannot be written: {error.strerror or error}", "name another place"
        ) from error
    digest, alarm = hashlib.sha256(content).hexdigest(), str(why or "")
    if as_json:
        told = {"file": str(file), "size_bytes": len(content), "sha256": digest, "alarm": alarm}
        print(json.dumps(told))
    else:
        if why:
            print(f"NOT BY THE AGENT, of what lies on the disk: {alarm}")
        print(f"{file}: {len(content)} bytes, sha256 {digest}")
    return why.exit_code if why else 0


def _of_the_agent(client: Client) -> bytes:
    """Raises AgentUnreachable, HoldfastError."""
    with client.download("/api/v1/support", "GET") as read:
        return b"".join(iter(partial(read, STEP_BYTES), b""))


def _of_the_disk(config: Path) -> bytes:
    """What can be read without the agent."""
    device = ""
    parts: dict[str, Callable[[], Any]] = {
        "config.yaml": lambda: masked(config_file.read(config)),
        "journal.txt": journal,
    }
    with suppress(ConfigError):  # then nobody knows where the store is
        settings = config_file.load(config)
        device, folder = settings.device, Path(settings.store.path).parent
        parts |= {name: partial(_document, folder / name) for name in FILES}
        parts["machine.json"] = partial(machine, folder)
    told: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, part in parts.items():
        try:
            told[name] = part()
        except (HoldfastError, OSError) as error:
            missing[name] = str(error)
    return packed(Origin(device, VERSION), told, missing, int(time.time() * 1e6))


def _document(path: Path) -> Any:
    """A document as such, so that it is masked by its keys; else its text."""
    with plain_file.opened(path) as file:
        content = file.read(MEMBER_BYTES_MAX)
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
