"""Answers that are known already."""

import msgspec

from agent.inference.cache import ENTRY_BYTES, Cache
from agent.inference.domains.work import Result


def result(size: int = 100) -> Result:
    whole = memoryview(bytearray(b"\xc0" * (size + 1000)))
    return Result(msgspec.Raw(b"\xc0"), whole[:size], "m/1@00", "CPU")


def test_an_answer_is_there_until_its_time_is_over() -> None:
    cache = Cache(1 << 20)
    assert cache.get(b"k", 0.0) is None
    cache.put(b"k", result(), 10.0)
    found = cache.get(b"k", 10.0)
    assert found is not None
    assert found.body == result().body
    assert found.body.nbytes == len(found.body.obj), "nothing else is kept alive with it"
    assert cache.get(b"k", 10.1) is None


def test_it_stays_within_its_bounds_and_gives_up_what_was_asked_for_longest_ago() -> None:
    cache = Cache(10 * (ENTRY_BYTES + 101))
    for i in range(10):
        cache.put(b"%d" % i, result(), 10.0)
    assert cache.get(b"0", 0.0)
    cache.put(b"0", result(), 10.0)  # once more: it takes no more room
    cache.put(b"new", result(), 10.0)
    assert cache.get(b"0", 0.0)
    assert cache.get(b"1", 0.0) is None
    assert cache.used_bytes == 10 * (ENTRY_BYTES + 101)
    cache.put(b"large", result(3000), 10.0)
    assert cache.get(b"large", 0.0) is None, "it would push out nearly all others"
    none = Cache(0)
    none.put(b"k", result(), 10.0)
    assert none.get(b"k", 0.0) is None


def test_a_call_is_known_by_all_that_it_says() -> None:
    calls = [
        ("m/1@0", b"h", [b"ab"]),
        ("m/2@0", b"h", [b"ab"]),
        ("m/1@1", b"h", [b"ab"]),
        ("m/1@0", b"ha", [b"b"]),
        ("m/1@0", b"h", [b"abc"]),
        ("m/1@0", b"h", []),
    ]
    assert len({Cache.key(*call) for call in calls}) == len(calls)
    assert Cache.key("m", b"h", [b"a", b"b"]) == Cache.key("m", b"h", [memoryview(b"ab")])
