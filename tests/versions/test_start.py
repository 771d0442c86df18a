"""Which version a start is on, of real files: first, edited, on trial, damaged, unwritable."""

import stat
from pathlib import Path

import pytest

from agent.errors import ConfigError, HoldfastError, StoreError
from agent.versions.folder import VERSIONS_MAX
from agent.versions.forms import Trial, Version
from agent.versions.start import Anew, Begun, begin
from tests.store.faults.disk import small
from tests.store.faults.test_disk_full import fill
from tests.versions.site import FIRST, Bent, Site, document

GOOD, BROKEN = document(log_level="debug"), b"link: {ack_from: nobody}\n"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def ordered(begun: Begun, text: bytes = GOOD, confirm: str = "auto") -> int:
    """An order's version, on trial."""
    trial = Trial(begun.kept.book.confirmed, confirm, 60.0, "an-order")  # type: ignore[arg-type]
    return begun.kept.add(text, Version(0, "", 0, "order"), trial, "an-order")


def names(begun: Begun) -> list[str]:
    return [one.name for one in begun.notes]


def test_the_file_is_the_first_version_byte_for_byte_and_for_its_owner_alone(site: Site) -> None:
    begun = site.begin()
    assert (begun.number, begun.settings.log_level, begun.on_trial) == (1, "info", None)
    assert (site.kept / "0001.yaml").read_text() == FIRST
    assert site.steps(begun) == [(1, "chosen"), (1, "confirmed")]
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in site.kept.iterdir()}
    assert set(found.values()) == {0o600}
    assert site.begin().number == 1, "nothing has changed"
    assert len(list(site.file.parent.iterdir())) == 1, "beside the file nothing is written"


def test_by_hand_the_versions_lie_beside_the_store_that_the_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, f"{FIRST}store: {{path: {tmp_path}/data/holdfast.db}}\n")
    assert site.begin(service=False).number == 1
    assert (tmp_path / "data" / "config" / "0001.yaml").exists()
    site.file.write_text(FIRST)  # the default, from the working directory
    monkeypatch.chdir(tmp_path)
    site.begin(service=False)
    assert (tmp_path / "var" / "config" / "0001.yaml").exists()


@pytest.mark.parametrize("service", [True, False])
def test_what_came_last_counts_an_order_or_the_file(tmp_path: Path, service: bool) -> None:
    store = {"path": str(tmp_path / "state" / "holdfast.db")}
    site = Site(tmp_path, document(store=store).decode())
    begun = site.begin(service=service)
    assert ordered(begun, document(store=store, log_level="debug")) == 2
    begun.kept.confirm("it is good")
    assert site.begin(service=service).settings.log_level == "debug"
    site.file.write_bytes(document(store=store, log_level="error"))
    begun = site.begin(service=service)
    assert (begun.number, begun.settings.log_level) == (3, "error")
    assert begun.kept.book.version(3).origin == "file"
    assert begun.on_trial == (Trial(2, "start", starts=1) if service else None)


def test_an_edit_that_says_what_is_live_is_no_new_version(site: Site) -> None:
    begun = site.begin()
    ordered(begun)
    begun.kept.confirm("it is good")
    site.file.write_bytes(GOOD)
    begun = site.begin()
    assert (begun.number, len(begun.kept.book.versions)) == (2, 2)


def test_a_file_that_cannot_be_used_ends_who_is_started_by_hand_and_no_service(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, f"{FIRST}store: {{path: {tmp_path}/state/holdfast.db}}\n")
    site.file.write_bytes(BROKEN)
    with pytest.raises(ConfigError, match="ack_from: unknown value 'nobody'"):
        site.begin()  # there is nothing else
    site.file.write_text(FIRST)
    site.begin()
    for wrong in (BROKEN, b"link: [", b"\xff"):
        site.file.write_bytes(wrong)
        begun = site.begin()
        assert (begun.number, names(begun)) == (1, ["config_file_unusable"])
        assert "version 1 serves" in begun.notes[0].cause
    with pytest.raises(ConfigError):
        site.begin(service=False)
    site.file.unlink()
    assert names(site.begin()) == ["config_file_unusable"]
    site.file.write_bytes(GOOD)
    assert (site.begin().number, names(site.begin())) == (2, [])


@pytest.mark.parametrize("confirm", ["auto", "manual", "start"])
def test_a_start_that_ended_as_it_was_told_to_counts_for_nothing(site: Site, confirm: str) -> None:
    number = ordered(site.begin(), confirm=confirm)
    for _ in range(4):
        with site.begin() as begun:
            assert begun.number == number
            begun.put_down()
    begun = site.begin()  # it is killed
    assert begun.on_trial
    assert begun.on_trial.starts == 1
    begun.kept.confirm("it is good")
    begun.put_down()  # of a version that is not on trial
    assert begun.kept.book.trial is None


@pytest.mark.parametrize("confirm", ["auto", "manual", "start"])
def test_a_version_on_trial_has_two_starts_and_the_third_is_on_the_former(
    site: Site, confirm: str
) -> None:
    number = ordered(site.begin(), confirm=confirm)
    for starts in (1, 2):  # each is killed
        begun = site.begin()
        assert begun.number == number
        assert begun.on_trial
        assert begun.on_trial.starts == starts
    begun = site.begin()
    assert (begun.number, begun.settings.log_level, begun.on_trial) == (1, "info", None)
    told = [(2, "chosen"), (2, "started"), (2, "started"), (2, "taken_back"), (1, "confirmed")]
    assert site.steps(begun)[2:] == told
    assert begun.kept.book.taken_back
    assert "2 times" in begun.kept.book.taken_back.why
    assert site.begin().number == 1, "and stays so"


@pytest.mark.parametrize("error", [HoldfastError("no", "yes"), OSError("gone"), KeyError("x")])
def test_what_ends_the_agent_on_trial_takes_the_version_back_at_once(
    site: Site, error: Exception
) -> None:
    ordered(site.begin())
    with pytest.raises(Anew, match="version 2 of the configuration is taken back"), site.begin():
        raise ExceptionGroup("of the loops", [error])
    begun = site.begin()
    assert begun.number == 1
    with pytest.raises(type(error)), begun:
        raise error  # not on trial: it ends as it always has


@pytest.mark.parametrize("error", [StoreError("the disk"), SystemExit(1), KeyboardInterrupt()])
def test_what_is_no_fault_of_a_configuration_takes_none_back(
    site: Site, error: BaseException
) -> None:
    ordered(site.begin())
    with pytest.raises(type(error)), site.begin():
        raise error
    assert site.begin().number == 2


def test_a_document_that_is_damaged_is_not_used(site: Site) -> None:
    begun = site.begin()
    ordered(begun)
    begun.kept.confirm("it is good")
    (site.kept / "0002.yaml").write_bytes(GOOD + b"jobs: {jobs_max: 7}\n")
    begun = site.begin()
    assert (begun.number, names(begun)) == (1, ["config_file_unusable"])
    assert "0002.yaml is not what was kept" in begun.notes[0].cause
    (site.kept / "0001.yaml").unlink()
    begun = site.begin()
    assert (begun.number, begun.settings.log_level) == (0, "info"), "the file itself is left"


def test_on_trial_it_is_taken_back_for_that(site: Site) -> None:
    ordered(site.begin())
    (site.kept / "0002.yaml").write_bytes(b"")
    begun = site.begin()
    assert (begun.number, begun.on_trial) == (1, None)
    assert begun.kept.book.taken_back


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"live": "x"}', b"\xff" * 100])
def test_without_a_book_that_can_be_read_the_file_is_live_and_nothing_is_lost(
    site: Site, content: bytes
) -> None:
    begun = site.begin()
    ordered(begun)
    begun.kept.confirm("it is good")
    (site.kept / "versions.json").write_bytes(content)
    begun = site.begin()
    assert (begun.number, begun.settings.log_level) == (3, "info")
    assert begun.kept.document(2) == GOOD, "which can be gone back to"
    assert site.begin().number == 3


def test_a_document_that_no_book_names_goes_with_the_next_start(site: Site) -> None:
    site.begin()
    (site.kept / "0002.yaml").write_bytes(GOOD)  # as a kill leaves it before the book is written
    begun = site.begin()
    assert not (site.kept / "0002.yaml").exists()
    assert ordered(begun) == 2


def test_versions_are_bounded_and_those_that_are_needed_stay(site: Site) -> None:
    begun = site.begin()
    for i in range(VERSIONS_MAX + 5):
        ordered(begun, document(jobs={"jobs_max": i + 1}))
        if i == 0:
            begun.kept.confirm("it is good")
        else:
            begun.kept.take_back("it is not")
    kept = [one.number for one in begun.kept.book.versions]
    assert len(kept) == VERSIONS_MAX
    assert {2, VERSIONS_MAX + 6} < set(kept)
    assert {path.name for path in site.kept.glob("*.yaml")} == {f"{n:04d}.yaml" for n in kept}


def test_a_second_agent_changes_nothing(site: Site) -> None:
    first = begin(site.file, site.state, site.clock)
    ordered(first)
    before = (site.kept / "versions.json").read_bytes()
    for _ in range(3):
        second = begin(site.file, site.state, site.clock)
        assert second.settings.log_level == "info"
    assert (site.kept / "versions.json").read_bytes() == before


def test_where_no_folder_can_be_made_the_file_serves(site: Site) -> None:
    site.kept.write_text("a file in its place")
    begun = site.begin()
    assert (begun.number, begun.settings.log_level) == (0, "info")
    assert names(begun) == ["config_unwritten"]
    with pytest.raises(StoreError, match="keeps no versions"):
        ordered(begun)


def test_on_a_full_disk_a_start_is_on_what_was_confirmed_and_an_edit_counts_too(
    tmp_path: Path,
) -> None:
    with small("tmpfs", tmp_path) as place:
        (tmp_path / "site").mkdir()
        site = Site(tmp_path / "site")
        site.state = place
        ordered(site.begin())
        fill(place / "ballast")
        for _ in range(3):
            begun = site.begin()
            assert (begun.number, begun.settings.log_level) == (1, "info")
            assert names(begun) == ["config_unwritten"], "it is not tried: nobody could count it"
        with pytest.raises(StoreError, match="no version can be kept, so nothing was changed"):
            ordered(begun)
        site.file.write_bytes(document(log_level="error"))
        begun = site.begin()
        assert (begun.number, begun.settings.log_level) == (0, "error")
        (place / "ballast").unlink()
        begun = site.begin()
        assert (begun.number, begun.settings.log_level) == (3, "error")


def test_a_clock_in_1970_changes_nothing(site: Site) -> None:
    site.clock = Bent(wall_s=1e9)
    ordered(site.begin())
    site.clock.wall_s = 7.0
    begun = site.begin()
    assert begun.number == 2
    begun.kept.confirm("it is good")
    assert [one.at_us for one in begun.kept.book.steps][-2:] == [7_000_000, 7_000_000]
    assert site.begin().number == 2
