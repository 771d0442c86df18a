"""The segmenter: its rules hold for any sound, in pieces of any size, and after any restart."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from agent.audio.segmenter import Segmenter, Stretch
from agent.config import Segments
from agent.records import RATE_HZ

HOP = 256
HOP_S = HOP / RATE_HZ
NEVER = 300.0  # the longest length_s_max: more than any take here
ANY = settings(max_examples=300)
LEVELS = st.sampled_from([0.0, 0.1, 0.35, 0.45, 0.5, 0.55, 0.65, 0.9, 1.0])


class Take(NamedTuple):
    """A take as the engine hears it: a probability per hop begun, and one for the hop after it."""

    samples: int
    speech: np.ndarray

    @property
    def clean(self) -> np.ndarray:
        """The sound; every sample tells its place."""
        return np.arange(self.samples).astype(np.uint16).view(np.int16)


def heard(
    segmenter: Segmenter, take: Take, calls: list[int], judged: int = 0, clean: int = 0
) -> list[Stretch]:
    """Push a take in calls of so many hops (the last one brings the rest) and end it.

    `judged` and `clean` are where the segmenter begins; clean sound lags one hop.
    """
    found = []
    hop = judged // HOP
    ends = [*np.cumsum(calls, dtype=int) + hop, len(take.speech)]
    for end in (int(min(e, len(take.speech))) for e in ends):
        ready = max(clean, (end - 1) * HOP)
        found += segmenter.push(take.clean[clean:ready], take.speech[hop:end])
        hop, clean = end, ready
    return found + segmenter.finish(take.samples)


def spans(stretches: list[Stretch]) -> list[tuple[int, int]]:
    return [(s.start, s.start + len(s.pcm)) for s in stretches]


def are_sound(stretches: list[Stretch], take: Take, rules: Segments, floor: int = 0) -> None:
    """What holds for any stretches of any take."""
    found = spans(stretches)
    for (_, end), (start, _) in pairwise(found):
        assert end <= start, f"they overlap or do not ascend: {found}"
    for stretch, (start, end) in zip(stretches, found, strict=True):
        assert floor <= start < end <= take.samples, f"beyond the take or the floor: {found}"
        assert end - start <= rules.length_s_max * RATE_HZ + HOP, f"too long: {found}"
        assert np.array_equal(stretch.pcm, take.clean[start:end]), "the sound of another place"
        assert 0 <= stretch.speech <= 1


@st.composite
def takes(draw: st.DrawFn) -> Take:
    """Runs of speech, of silence, and of what is neither."""
    runs = draw(st.lists(st.tuples(st.integers(1, 80), LEVELS), min_size=1, max_size=8))
    speech = np.concatenate([np.full(count, level, np.float32) for count, level in runs])
    return Take(len(speech) * HOP - draw(st.integers(HOP, 2 * HOP - 1)), speech)


def lengths(most_s: float, least_s: float = HOP_S) -> st.SearchStrategy[float]:
    return st.integers(int(least_s / HOP_S), int(most_s / HOP_S)).map(lambda hops: hops * HOP_S)


@st.composite
def usual_rules(draw: st.DrawFn) -> Segments:
    """A margin that fits into the hangover, and a shortest speech well below the longest."""
    hangover_s = draw(lengths(1.0, 0.1))
    return Segments(
        open_probability=draw(st.sampled_from([0.5, 0.6, 0.8])),
        close_probability=draw(st.sampled_from([0.2, 0.4, 0.5])),
        speech_s_min=draw(lengths(0.5)),
        hangover_s=hangover_s,
        margin_s=draw(lengths(hangover_s - 2 * HOP_S)),
        length_s_max=draw(st.floats(1, 3) | st.just(NEVER)),
    )


@st.composite
def any_rules(draw: st.DrawFn) -> Segments:
    """All that the configuration lets through, but for what is longer than the longest stretch."""
    close, opening = sorted(draw(st.lists(LEVELS, min_size=2, max_size=2)))
    return Segments(
        open_probability=opening,
        close_probability=close,
        speech_s_min=draw(lengths(0.5) | st.floats(1e-5, 0.5)),
        hangover_s=draw(lengths(0.5) | st.floats(1e-5, 1)),
        margin_s=draw(lengths(1.0) | st.floats(1e-5, 1)),
        length_s_max=draw(st.floats(1, 3)),
    )


CALLS = st.lists(st.integers(1, 70), max_size=30)


@ANY
@given(take=takes(), rules=usual_rules(), calls=CALLS, floor=st.integers(0, 20_000))
def test_stretches_ascend_within_the_take_and_hold_the_sound_of_their_place(
    take: Take, rules: Segments, calls: list[int], floor: int
) -> None:
    found = heard(Segmenter(rules, HOP, floor=floor), take, calls)
    are_sound(found, take, rules, floor)


@ANY
@given(take=takes(), rules=any_rules(), calls=CALLS, floor=st.integers(0, 20_000))
@example(  # shorter than a hop, and a hangover shorter than a hop
    take=Take(131, np.zeros(2, np.float32)),
    rules=Segments(0.0, 0.0, speech_s_min=0.016, hangover_s=1e-5, margin_s=0.0078125),
    calls=[],
    floor=0,
)
def test_stretches_are_sound_under_any_rules_that_can_be_set(
    take: Take, rules: Segments, calls: list[int], floor: int
) -> None:
    found = heard(Segmenter(rules, HOP, floor=floor), take, calls)
    are_sound(found, take, rules, floor)


def same(one: list[Stretch], other: list[Stretch]) -> bool:
    return spans(one) == spans(other) and [s.speech for s in one] == [s.speech for s in other]


@ANY
@given(take=takes(), rules=usual_rules(), calls=CALLS)
def test_the_size_of_the_calls_makes_no_difference(
    take: Take, rules: Segments, calls: list[int]
) -> None:
    at_once = heard(Segmenter(rules, HOP), take, [])
    assert same(heard(Segmenter(rules, HOP), take, calls), at_once)


@ANY
@given(take=takes(), rules=any_rules(), calls=CALLS)
def test_the_size_of_the_calls_makes_no_difference_under_any_rules(
    take: Take, rules: Segments, calls: list[int]
) -> None:
    at_once = heard(Segmenter(rules, HOP), take, [])
    assert same(heard(Segmenter(rules, HOP), take, calls), at_once)


def by_the_docstring(take: Take, rules: Segments) -> list[tuple[int, int]]:
    """The stretches as `config.Segments` describes them, without a cut."""
    found: list[tuple[int, int]] = []
    margin, opened, last = round(rules.margin_s * RATE_HZ), -1, -1
    hops = list(take.speech)
    for hop, probability in enumerate([*hops, *[-1.0] * 1000]):
        if opened < 0 and probability >= rules.open_probability:
            opened = hop
        if opened >= 0 and probability >= rules.close_probability:
            last = hop
        if opened >= 0 and (hop - last) * HOP_S >= rules.hangover_s - 1e-9:
            spoken = sum(p >= rules.close_probability for p in hops[opened : last + 1])
            start = max(opened * HOP - margin, found[-1][1] if found else 0)
            end = min((last + 1) * HOP + margin, take.samples)
            if spoken * HOP_S >= rules.speech_s_min - 1e-9 and start < end:
                found.append((start, end))
            opened = -1
    return found


@ANY
@given(take=takes(), rules=usual_rules())
def test_stretches_open_close_widen_and_are_forgotten_as_the_rules_say(
    take: Take, rules: Segments
) -> None:
    uncut = Segments(
        rules.open_probability,
        rules.close_probability,
        rules.speech_s_min,
        rules.hangover_s,
        rules.margin_s,
        NEVER,
    )
    assert spans(heard(Segmenter(uncut, HOP), take, [])) == by_the_docstring(take, uncut)


def speech_of(seconds: float) -> Take:
    hops = int(seconds / HOP_S)
    return Take(hops * HOP, np.ones(hops + 1, np.float32))


@ANY
@given(seconds=st.floats(0.5, 20), rules=usual_rules(), calls=CALLS)
def test_long_speech_is_cut_into_parts_that_meet(
    seconds: float, rules: Segments, calls: list[int]
) -> None:
    take = speech_of(seconds)
    found = spans(heard(Segmenter(rules, HOP), take, calls))
    assert found[0][0] == 0
    for (_, end), (start, _) in pairwise(found):
        assert end == start
    assert all(end - start > rules.length_s_max * RATE_HZ - HOP * 2 for start, end in found[:-1])


@ANY
@given(seconds=st.floats(0.5, 20), rules=usual_rules())
def test_of_long_speech_the_last_part_is_not_forgotten_for_being_short(
    seconds: float, rules: Segments
) -> None:
    """It is the end of a word that was begun; `speech_s_min` was reached long before."""
    take = speech_of(seconds)
    assume(seconds > rules.speech_s_min + HOP_S)
    assert spans(heard(Segmenter(rules, HOP), take, []))[-1][1] == take.samples


def taken_up_again(take: Take, rules: Segments, stop: int, back: int) -> list[Stretch]:
    """The stretches when the segmenter is lost after `stop` hops and built again from its floor.

    The second one begins up to `back` hops before what the first one said it needed.
    """
    first = Segmenter(rules, HOP)
    ready = max(0, stop - 1) * HOP
    found = first.push(take.clean[:ready], take.speech[:stop])
    clean = max(0, min(first.needed, ready) // HOP - back) * HOP
    judged = clean + HOP if clean else 0
    second = Segmenter(rules, HOP, judged, clean, first.floor, first.spoken_until)
    return found + heard(second, take, [], judged, clean)


@ANY
@given(
    take=takes(), rules=usual_rules(), stop=st.integers(0, 300), back=st.sampled_from([0, 1, 5, 60])
)
@example(  # a cut in a pause: the hop at the cut is no speech, but the stretch goes on
    take=Take(
        140 * HOP,
        np.array([1.0] * 60 + [0.0] * 8 + [0.5] * 60 + [0.0] * 13, np.float32),
    ),
    rules=Segments(speech_s_min=0.2, hangover_s=0.3, margin_s=0.1, length_s_max=1.0),
    stop=66,
    back=0,
)
def test_a_segmenter_built_again_at_any_moment_gives_what_the_first_would_have(
    take: Take, rules: Segments, stop: int, back: int
) -> None:
    stop = min(stop, len(take.speech) - 1)
    again = taken_up_again(take, rules, stop, back)
    assert spans(again) == spans(heard(Segmenter(rules, HOP), take, []))


@pytest.mark.parametrize("speech", [[], [0.0], [1.0]])
def test_a_take_of_no_sound_gives_nothing(speech: list[float]) -> None:
    segmenter = Segmenter(Segments(), HOP)
    found = segmenter.push(np.zeros(0, np.int16), np.array(speech, np.float32))
    assert found + segmenter.finish(0) == []
