"""The coordinator sees what it is there to see: each kind of wrong, done to the cloud by hand."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.net.coordinator import Site

ONE = "FROM records r JOIN streams s ON s.id = r.stream WHERE s.name = 'readings' LIMIT 1"
WHICH = f"rowid = (SELECT r.rowid {ONE})"
WRONGS = {
    "missing": f"DELETE FROM records WHERE {WHICH}",
    "another record": f"UPDATE records SET body = replace(body, 'note', 'not') WHERE {WHICH}",
    "its blob": "UPDATE pieces SET content = zeroblob(size_bytes)",
    "beyond": f"UPDATE records SET seq = seq + 100000 WHERE {WHICH}",
    "told as dropped": "INSERT OR REPLACE INTO told SELECT r.stream, r.seq, r.seq, 'x'"
    f" {ONE}; DELETE FROM records WHERE {WHICH}",
    "at two places": "UPDATE records SET body = (SELECT r.body"
    f" {ONE}) WHERE stream = (SELECT r.stream {ONE})",
}


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("well"), records=150) as site:
        site.makes_all()
        site.recover()
        assert site.faults() == []
        site.cloud.kill()
        yield site


@pytest.mark.parametrize("word", WRONGS)
def test_what_is_wrong_is_seen(well: Site, word: str) -> None:
    path = well.folder / "fleet.db"
    before = path.with_suffix(".copy")
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(before)) as copy:
        db.backup(copy)
        db.executescript(WRONGS[word])
    assert word in " ".join(well.faults())
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(before)) as copy:
        copy.backup(db)
    assert well.faults() == []
