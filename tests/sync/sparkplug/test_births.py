"""The number of births and deaths, over restarts and disks that fail."""

from pathlib import Path

import pytest

from agent.sync.sparkplug.births import Births


async def test_it_grows_by_one_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "sparkplug.json"
    assert [await Births(path).next() for _ in range(3)] == [0, 1, 2]


async def test_an_unused_number_is_used_by_the_next(tmp_path: Path) -> None:
    births = Births(tmp_path / "sparkplug.json")
    assert await births.next() == 0
    births.unused()
    births.unused()
    assert await births.next() == 0
    assert await births.next() == 1


@pytest.mark.parametrize("content", [b"", b"seven", b'{"bdseq": "x"}', b"\xff"])
async def test_a_file_that_cannot_be_read_begins_anew_and_is_said(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "sparkplug.json"
    path.write_bytes(content)
    assert await Births(path).next() == 0
    assert "bdSeq begins at 0" in caplog.text


async def test_a_disk_that_takes_nothing_keeps_nobody_from_connecting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    births = Births(tmp_path / "file" / "sparkplug.json")
    assert [await births.next() for _ in range(2)] == [0, 1]
    assert "sparkplug.json" in caplog.text
