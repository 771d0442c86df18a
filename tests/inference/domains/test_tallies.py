"""What the statistics add up of calls."""

import msgspec

from agent.inference import wire
from agent.inference.domains.tallies import BATCH_SIZES_MAX, Tallies
from agent.inference.domains.work import Class, Work


def work(rows: int = 1) -> Work:
    """A call that came at 10 s, and has its answer at 15 s."""
    made = Work(
        *("m", msgspec.Raw(b""), []),
        **{"size_bytes": 0, "klass": Class.BATCH, "now_s": 10.0, "timeout_s": 7.0, "rows": rows},
    )
    times = made.times
    times.sent_s, times.began_s, times.ended_s, times.answered_s = 11.0, 11.5, 14.0, 15.0
    return made


async def test_what_went_well_and_what_did_not() -> None:
    tallies = Tallies()
    works = [work(2), work(3)]
    tallies.answered(works, wire.Answers(1, [wire.Answer(), wire.Answer()], 0.0, 11.5, 14.0))
    for one in works:
        tallies.ended(one, "ok")
    tallies.ended(work(), "refused")
    tallies.ended(work(), "withdrawn")
    late = work()
    late.times.answered_s = 0.0
    tallies.ended(late, "late")
    lost = work()
    lost.times.answered_s = 0.0
    tallies.ended(lost, "lost")
    assert (tallies.rows, tallies.runs, tallies.last_s) == (5, 1, 15.0)
    assert (tallies.good.count, tallies.good.total_s) == (2, 10.0)
    assert (tallies.failed.count, tallies.failed.total_s) == (3, 5.0 + 7.0 + 1.0)
    assert [one.total_s for one in tallies.spans] == [1.0, 5.0, 2.0]
    assert [one.total_s for one in tallies.by_rows[5]] == [0.5, 2.5, 1.0]
    tallies.looked_up(4, 0.5, 20.0, known=True)
    tallies.looked_up(4, 0.5, 30.0, known=False)
    assert (tallies.rows, tallies.good.count, tallies.last_s) == (9, 3, 20.0)
    assert (tallies.known.count, tallies.unknown.count) == (1, 1)


async def test_sizes_are_bounded() -> None:
    tallies = Tallies()
    for rows in range(1, 3 * BATCH_SIZES_MAX):
        tallies.answered([work(rows)], wire.Answers(1, [wire.Answer()], 0.0, 11.5, 14.0))
    assert len(tallies.by_rows) == BATCH_SIZES_MAX
    assert tallies.runs == 3 * BATCH_SIZES_MAX - 1
