"""Groups that are still in use when their domain goes: none of them is forgotten."""

from collections import deque
from pathlib import Path
from typing import Any

from agent.host.cells import Cells
from agent.host.limits import Limits


class Group:
    """In use until it is not."""

    def __init__(self) -> None:
        self.in_use = True

    def close(self) -> bool:
        return not self.in_use


class Late(deque[Any]):
    """Another thread puts one in as soon as the last one has been looked at."""

    def __init__(self, held: list[Any], late: list[Any]) -> None:
        super().__init__(held)
        self._late = late

    def popleft(self) -> Any:
        found = super().popleft()
        while self._late:
            self.append(self._late.pop())
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        value = list(value)
        self.clear()
        self.extend(value)

    def __iter__(self) -> Any:
        yield from list(super().__iter__())
        while self._late:
            self.append(self._late.pop())


def test_a_group_that_another_thread_leaves_meanwhile_is_not_forgotten(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    for name in ("swaps", "mounts", "self"):
        (tmp_path / "proc" / name).touch()
    cells = Cells(tmp_path)
    first, late = Group(), Group()
    cells._closed = Late([first], [late])
    cells.open("one", Limits()).close()
    assert {*cells._closed} == {first, late}
    first.in_use = late.in_use = False
    cells.open("two", Limits()).close()
    assert not [*cells._closed]
