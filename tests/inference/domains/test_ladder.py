"""When a model that left its accelerator may go back."""

import pytest

from agent import config
from agent.inference.domains.ladder import Ladder

MIN_S, MAX_S = 30.0, 3600.0


@pytest.fixture
def ladder() -> Ladder:
    return Ladder(config.Domain(models=["m", "n"], probe_s_min=MIN_S, probe_s_max=MAX_S))


def fell(ladder: Ladder, model: str, now_s: float) -> bool:
    return ladder.fell(model, "sticky", "CUDA failure 700", now_s)


def test_pauses_double_up_to_the_largest(ladder: Ladder) -> None:
    assert fell(ladder, "m", 0.0)
    assert ladder.due(MIN_S - 1) == []
    pauses, now_s = list[float](), 0.0
    for _ in range(9):
        pauses.append(ladder.falls["m"].pause_s)
        now_s = ladder.due_s() or 0.0
        assert ladder.due(now_s) == ["m"]
        ladder.failed(["m"], "it does not work", now_s)
    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_so_many_probes_in_a_row_have_to_pass(ladder: Ladder) -> None:
    fell(ladder, "m", 0.0)
    assert ladder.passed(["m"], 30.0) == []
    ladder.failed(["m"], "not any more", 60.0)
    assert ladder.passed(["m"], 120.0) == []
    assert ladder.due_s() == 120.0 + MIN_S
    assert ladder.passed(["m"], 150.0) == ["m"]


def test_a_fault_soon_after_a_return_begins_with_twice_the_pause(ladder: Ladder) -> None:
    now_s = 0.0
    for pause_s in (30.0, 60.0, 120.0):
        fell(ladder, "m", now_s)
        assert ladder.falls["m"].pause_s == pause_s
        ladder.returned(["m"], now_s + 200.0)
        assert not ladder.falls
        now_s += 300.0
    fell(ladder, "m", now_s + MAX_S)  # it has served for long: it is forgiven
    assert ladder.falls["m"].pause_s == MIN_S


def test_a_second_fault_of_a_fallen_model_changes_nothing(ladder: Ladder) -> None:
    assert fell(ladder, "m", 0.0)
    assert not fell(ladder, "m", 20.0)
    assert ladder.due_s() == MIN_S
    assert ladder.count == {"sticky": 1}


def test_each_model_has_its_own_pause(ladder: Ladder) -> None:
    fell(ladder, "m", 0.0)
    fell(ladder, "n", 10.0)
    assert ladder.due(MIN_S) == ["m"]
    ladder.failed(["m"], "", MIN_S)
    assert ladder.due(MIN_S + 10.0) == ["n"]
    ladder.keep({"n": None})
    assert list(ladder.falls) == ["n"]


def test_what_is_mended_need_not_wait(ladder: Ladder) -> None:
    fell(ladder, "m", 0.0)
    for i in range(5):
        ladder.failed(["m"], "", 100.0 * i)
    ladder.hurry(500.0)
    assert ladder.due(500.0) == ["m"]
    assert ladder.passed(["m"], 501.0) == ["m"]
