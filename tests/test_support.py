"""The archive: what is in it, how large it may be, and that no part keeps it from being made."""

import asyncio
import io
import json
import os
import sys
import tarfile
from typing import Any

import pytest

from agent import support
from agent.clock import Clock
from agent.errors import HoldfastError, StoreError
from agent.support import Origin, Support, journal, packed

ORIGIN = Origin("dev", "1.2.3")


def opened(archive: bytes) -> dict[str, Any]:
    """Its members; documents as such."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        found = {one.name: tar.extractfile(one) for one in tar}
        texts = {name: file.read().decode() for name, file in found.items() if file}
    return {
        name: json.loads(text) if name.endswith(".json") else text for name, text in texts.items()
    }


async def test_what_the_parts_tell_is_there_and_what_they_do_not_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(support, "PART_S", 0.01)

    async def state() -> Any:
        return {"a": ORIGIN, "password": "hunter2"}

    async def log() -> str:
        return "begun\npassword: hunter2\n"

    async def hangs() -> Any:
        await asyncio.Event().wait()

    async def fails() -> Any:
        raise StoreError("no disk, mqtt://u:hunter2@b", "mend it")

    parts = {"state.json": state, "log.txt": log, "hangs.json": hangs, "fails.json": fails}
    archive = await Support(ORIGIN, parts, Clock()).archive()
    found = opened(archive)
    contents = found.pop("contents.json")
    assert found == {
        "state.json": {"a": ["dev", "1.2.3"], "password": "***"},
        "log.txt": "begun\npassword: ***\n",
    }
    assert (contents["device"], contents["version"]) == ORIGIN
    assert contents["members"]["log.txt"] == {"size_bytes": 20, "cut_bytes": 0}
    assert contents["missing"] == {
        "hangs.json": "not told within 0.01 s",
        "fails.json": "no disk, mqtt://***@b",
    }


def test_however_much_there_is_the_archive_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise does not shrink: members are cut until all of it fits."""
    monkeypatch.setattr(support, "MEMBER_BYTES_MAX", 1 << 18)
    noise = {f"log-{n}.txt": os.urandom(1 << 17).hex() for n in range(4)}
    told = {**noise, "large.json": {"x": os.urandom(1 << 17).hex()}, "small.json": [1]}
    archive = packed(ORIGIN, told, {}, 0, bytes_max=1 << 18)
    assert len(archive) <= 1 << 18
    found = opened(archive)
    sizes = found["contents.json"]["members"]
    assert found["small.json"] == [1]
    for name, text in noise.items():
        assert 0 < sizes[name]["size_bytes"] < 1 << 18
        assert found[name] == text[-sizes[name]["size_bytes"] :], "the end is kept"
        assert sizes[name]["size_bytes"] + sizes[name]["cut_bytes"] == len(text)
    assert found["large.json.cut"].startswith('{\n "x": ')


def test_of_the_journal_the_end_is_read() -> None:
    much = "print('password: ' + 'x' * 2000 + '\\n', end='') or None\n"
    found = journal((sys.executable, "-c", f"for _ in range(2000): {much}print('the end')"))
    assert support.MEMBER_BYTES_MAX - 3000 < len(found) <= support.MEMBER_BYTES_MAX
    assert found.startswith("password: x"), "no line lacks its beginning"
    assert found.endswith("the end\n")


@pytest.mark.parametrize("command", [("/nowhere/journalctl",), ("/bin/false",), ("/bin/true",)])
def test_a_journal_that_cannot_be_read_is_said(command: tuple[str, ...]) -> None:
    with pytest.raises(HoldfastError):
        journal(command)
