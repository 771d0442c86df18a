"""A clock that nobody has set cuts no device off, and opens no door."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.known_time import KnownTime
from tests.outside import Mosquitto, running
from tests.sync.authority import Authority
from tests.sync.bent import Told
from tests.sync.rig import Rig, emptied, eventually, linked
from tests.sync.test_tls import secured

# paho leaves the socket of a failed handshake to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
IN_1970_S = -datetime.now(UTC).timestamp() + 3600
IN_TEN_YEARS_S = 3652 * 86_400.0
PAST = {"first_day": -9, "last_day": -2}
FUTURE = {"first_day": 2, "last_day": 9}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, days=20)


@contextmanager
def serving(folder: Path, authority: Authority, **issued: object) -> Iterator[Mosquitto]:
    with running(broker := secured(folder, authority, **issued)):
        yield broker


def rig_of(folder: Path, broker: Mosquitto, authority: Authority, clock: Told) -> Rig:
    return Rig(folder, broker.url, clock, ack_from="broker", ca_file=str(authority.file))


def known_before(folder: Path, days: float) -> None:
    """The device once knew what time it is: so many days from now."""
    KnownTime(folder / "known-time.json", Told(sure=True, shift_s=days * 86_400)).note()


@pytest.mark.parametrize("shift_s", [IN_1970_S, IN_TEN_YEARS_S], ids=["1970", "+10 years"])
@pytest.mark.parametrize("issued", [{}, PAST, FUTURE], ids=["now", "past", "future"])
async def test_without_a_clock_a_certificate_that_may_be_good_serves(
    shift_s: float, issued: dict[str, object], tmp_path: Path, authority: Authority
) -> None:
    """OpenSSL judges by this machine's true clock, so a certificate of another time stands for a
    clock that is wrong."""
    clock = Told(sure=False, shift_s=shift_s)
    with serving(tmp_path, authority, **issued) as broker:
        async with linked(rig_of(tmp_path, broker, authority, clock)) as rig:
            await rig.fill(3)
            await emptied(rig)
            (found,) = [one for one in rig.conditions.all() if one.name == "expiry_unjudged"]
            assert "never was" in found.cause
            assert found.severity == "note"


async def test_without_a_clock_chain_and_name_are_verified(
    tmp_path: Path, authority: Authority
) -> None:
    clock = Told(sure=False, shift_s=IN_1970_S)
    with serving(tmp_path, authority, address="127.0.0.9") as broker:
        async with linked(rig_of(tmp_path, broker, authority, clock)) as rig:
            await eventually(lambda: rig.says("is not for 127.0.0.1"), "the cause")
            assert rig.link.connected_since is None
    with serving(tmp_path, authority) as broker:
        other = Authority(tmp_path, "other")
        async with linked(rig_of(tmp_path, broker, other, clock)) as rig:
            await eventually(lambda: rig.says("is of no authority in"), "the cause")
            assert rig.link.connected_since is None


async def test_what_has_certainly_expired_is_refused_by_no_clock(
    tmp_path: Path, authority: Authority
) -> None:
    """The last time that was known lies behind its end, so every clock that is right does too."""
    clock = Told(sure=False, shift_s=IN_1970_S)
    with serving(tmp_path, authority, last_day=5) as broker:
        known_before(tmp_path, days=6)
        async with linked(rig_of(tmp_path, broker, authority, clock)) as rig:
            await eventually(lambda: rig.says("has expired on"), "the cause")
            assert rig.says("so much is known")
            assert rig.link.connected_since is None
        known_before(tmp_path, days=4)
        async with linked(rig_of(tmp_path, broker, authority, clock)) as rig:
            await eventually(lambda: rig.link.connected_since, "one that may be good serves")


async def test_an_authority_that_has_certainly_expired_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, days=3)
    known_before(tmp_path, days=4)
    clock = Told(sure=False)
    with serving(tmp_path, authority, last_day=5) as broker:
        async with linked(rig_of(tmp_path, broker, authority, clock)) as rig:
            await eventually(lambda: rig.says("or that of its authority, has expired"), "the cause")


@pytest.mark.parametrize("issued", [PAST, FUTURE], ids=["past", "future"])
async def test_once_the_clock_is_known_a_connection_that_is_up_is_judged(
    issued: dict[str, object], tmp_path: Path, authority: Authority
) -> None:
    clock = Told(sure=False, shift_s=IN_1970_S)
    with serving(tmp_path, authority, **issued) as broker:
        async with linked(rig_of(tmp_path, broker, authority, clock)) as rig:
            await eventually(lambda: rig.link.connected_since, "it is up")
            clock.sure, clock.shift_s = True, 0.0
            await eventually(lambda: rig.holds("link_down"), "it was ended")
            assert rig.link.connected_since is None


async def test_once_the_clock_is_known_a_good_certificate_serves_on(
    tmp_path: Path, authority: Authority
) -> None:
    clock = Told(sure=False, shift_s=IN_1970_S)
    with serving(tmp_path, authority) as broker:
        async with linked(rig_of(tmp_path, broker, authority, clock)) as rig:
            await eventually(lambda: rig.link.connected_since, "it is up")
            since = rig.link.connected_since
            clock.sure, clock.shift_s = True, 0.0
            await eventually(lambda: not rig.holds("expiry_unjudged"), "it was judged")
            assert rig.link.connected_since == since


def test_the_last_time_that_was_known_is_a_lower_bound(tmp_path: Path) -> None:
    path, clock = tmp_path / "known-time.json", Told(sure=False, shift_s=IN_1970_S)
    known = KnownTime(path, clock)
    known.note()
    assert (known.least_s(), path.exists()) == (0.0, False), "what nobody knows is not kept"
    clock.sure, clock.shift_s = True, 0.0
    known.note()
    true_s = clock.wall()
    clock.sure, clock.shift_s = False, IN_TEN_YEARS_S
    assert true_s - 1 <= KnownTime(path, clock).least_s() <= clock.wall() - IN_TEN_YEARS_S + 1
    assert KnownTime(path, clock).least_s() >= known.least_s() - 1, "another process of this boot"
    clock.boot = "another"
    assert true_s - 60 <= KnownTime(path, clock).least_s() <= true_s + 1, "no time is added to it"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"utc_s": 1e999}', b"{" * 9000])
def test_a_time_that_cannot_be_read_is_not_known(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "known-time.json"
    path.write_bytes(content)
    known = KnownTime(path, Told(sure=False))
    assert known.least_s() == 0.0
    assert "never was" in known.said()


def test_times_no_calendar_has_are_said_all_the_same(tmp_path: Path) -> None:
    known = KnownTime(
        tmp_path / "t", Told(sure=True, shift_s=timedelta(days=4_000_000).total_seconds())
    )
    assert "after 1970" in known.said()
