"""The agent's side of the root daemon, against the real one, and against what is none."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.host.root.client import Root, RootRefused, RootUnreachable
from agent.host.root.forms import ANSWER_BYTES_MAX, Nvpmodel, Reboot
from tests.host.root.played import Played
from tests.outside import running


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    if os.geteuid() != 0:
        pytest.skip("the root daemon needs root")
    made = Played(tmp_path)
    with running(made):
        yield made


async def test_what_is_ordered_is_done(played: Played) -> None:
    (played.folder / "do").write_text("echo NV Power Mode: 15W\n")
    assert await Root(played.socket).ask(Nvpmodel(mode=4)) == "NV Power Mode: 15W"
    assert played.called() == ["-m 4"]


async def test_what_fails_is_raised_with_its_words(played: Played) -> None:
    (played.folder / "do").write_text("exit 3\n")
    with pytest.raises(RootRefused, match="status 3: without a word"):
        await Root(played.socket).ask(Reboot())


async def test_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RootUnreachable, match="No such file") as error:
        await Root(tmp_path / "none").ask(Reboot())
    assert "holdfast-root.socket" in error.value.hint
    with pytest.raises(RootUnreachable, match="configured") as error:
        await Root(None).ask(Reboot())
    assert "watchdog.root_socket" in error.value.hint


@asynccontextmanager
async def answering(path: Path, said: bytes | None) -> AsyncIterator[None]:
    lines: list[asyncio.StreamWriter] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(writer)
        if said is not None:
            writer.write(said)
            writer.close()

    async with await asyncio.start_unix_server(answer, str(path)):
        yield
        for line in lines:
            line.close()


async def test_one_that_is_silent_is_not_waited_for(tmp_path: Path) -> None:
    async with answering(tmp_path / "s", None):
        with pytest.raises(RootUnreachable, match="within"):
            await Root(tmp_path / "s", timeout_s=0.1).ask(Reboot())


@pytest.mark.parametrize(
    "said", [b"", b"\xff\n", b"[]\n", b"{}\n", b'{"done": 7}\n', b"x" * 2 * ANSWER_BYTES_MAX]
)
async def test_one_that_talks_nonsense_is_named(tmp_path: Path, said: bytes) -> None:
    async with answering(tmp_path / "s", said):
        with pytest.raises(RootUnreachable, match="root daemon"):
            await Root(tmp_path / "s").ask(Reboot())
