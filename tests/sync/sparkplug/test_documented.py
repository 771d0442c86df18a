"""The table of the specification's assertions: each line names tests that there are."""

import re
from pathlib import Path

from tests.outside import ROOT

HERE = Path(__file__).parent
NAMED = re.compile(r"\b(test_\w+)(?:: ([a-z_0-9, ]+))?")


def test_each_assertion_is_shown_by_a_test_that_is_there() -> None:
    document = (ROOT / "docs/sparkplug.md").read_text()
    rows = document.partition("| assertion | shown by |")[2].splitlines()[2:]
    rows = [row for row in rows if row.startswith("|")]
    assert len(rows) > 25
    for row in rows:
        shown = row.split("|")[2]
        for file, names in NAMED.findall(shown):
            folder = HERE.parent if file == "test_place" else HERE
            tests = re.findall(r"def (test_\w+)", (folder / f"{file}.py").read_text())
            for name in filter(None, (one.strip() for one in names.split(","))):
                assert any(name in test for test in tests), (file, name)
        assert "judge" in shown or NAMED.search(shown) or "whoever names" in shown, row
