"""The repository of signed content: by its command, and as a device of the other side sees it."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from agent import whole_file
from agent.errors import ConfigError, HoldfastError, NotNow
from agent.updates.checking import Checked
from agent.updates.fetched import NotFetched
from fleet.cli import app
from fleet.updates import drafting, keys, showing
from fleet.updates.draft import Terms
from fleet.updates.repository import Repository
from tests.updates.bed import CONTENT, DAY_S, NOW_S, TARGET, Shop, believe

FLEET_COMMAND = Path(sys.executable).with_name("holdfast-fleet")


class Desk:
    """A fleet's operator at the terminal."""

    def __init__(self, folder: Path) -> None:
        self.home, self.keys = folder / "updates", folder / "keys"
        self.root_file = self.home / "repository/metadata/1.root.json"
        self._trust = folder / "trust"

    def run(self, *words: str, keys: bool = False) -> subprocess.CompletedProcess[str]:
        options = ["--home", str(self.home)] if words[0] != "key" else []
        options += ["--keys", str(self.keys)] if keys else []
        command = [str(FLEET_COMMAND), "updates", *words, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def ask(self, *words: str, keys: bool = False) -> dict[str, Any]:
        done = self.run(*words, "--json", keys=keys)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def believed(self) -> Checked:
        return believe(self.home / "repository", self.root_file, self._trust, 0.0)


def test_from_the_first_key_to_the_device(tmp_path: Path) -> None:
    """Two of two must sign for targets, whose keys lie on a stick that is put away."""
    desk, stick = Desk(tmp_path), tmp_path / "stick"
    began = desk.ask("init", "--threshold", "targets=2", keys=True)
    assert began["root_file"] == str(desk.root_file)
    names = sorted(one.name for one in desk.keys.iterdir())
    assert [one for one in names if one.startswith("targets")] == ["targets-1.pem", "targets-2.pem"]
    secrets = [one.read_text().splitlines()[1] for one in desk.keys.iterdir()]
    assert all(one.stat().st_mode & 0o777 == 0o600 for one in desk.keys.iterdir())

    file = tmp_path / "speech.tar.zst"
    file.write_bytes(b"a model")
    added = ("add", str(file), "--kind", "model", "--name", "speech", "--version", "4")
    told = desk.ask(*added, "--tag", "press", "--min-free-bytes", "1000")
    assert told["target"] == "models/speech-4.tar.zst"
    assert desk.believed().targets == []  # it is not signed yet

    stick.mkdir()
    (desk.keys / "targets-2.pem").rename(stick / "targets-2.pem")
    left = desk.run("publish", keys=True)
    assert left.returncode == 0, left.stderr
    assert "the draft is not published: targets: needs 2 of 2 signatures, and 1" in left.stdout
    assert desk.believed().versions["timestamp"] == 2
    assert desk.believed().targets == []
    assert desk.ask("publish", "--keys", str(stick), keys=True)["signed"]["targets"] == 2

    (found,) = desk.believed().targets
    custom = {"kind": "model", "name": "speech", "version": "4", "tags": ["press"]}
    assert found.custom == custom | {"min_free_bytes": 1000}
    status = desk.ask("status")
    assert status["roles"]["targets"]["threshold"] == 2
    assert status["targets"][0]["target"] == "models/speech-4.tar.zst"
    assert status["draft"] == {"add": {}, "remove": []}

    desk.ask("remove", "models/speech-4.tar.zst")
    shown = desk.run("status")
    assert "goes at the next publish" in shown.stdout
    desk.ask("publish", "--keys", str(stick), keys=True)
    assert desk.believed().targets == []
    assert not list((desk.home / "repository/targets").rglob("*"))
    said = left.stdout + shown.stdout + json.dumps(status)
    assert not any(secret in said for secret in secrets)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """For those who leave it as it is."""
    return Shop(tmp_path_factory.mktemp("shop"))


def invoked(*words: str) -> Result:
    """The command in this process: a start costs a second."""
    return CliRunner().invoke(app, ["updates", *words])


def test_another_hand(tmp_path: Path) -> None:
    """A key that its owner made is taken up by its public half; the owner signs from then on."""
    shop = Shop(tmp_path / "shop")
    home = ("--home", str(shop.repository.home), "--keys", str(shop.keys))
    anna, public = tmp_path / "anna", tmp_path / "anna.json"
    shown = invoked("key", "targets-anna", "--json", "--keys", str(anna))
    public.write_text(shown.stdout)
    assert "PRIVATE" not in shown.stdout
    words = ("rotate", "targets", "--public", str(public), *home)
    assert "not at hand" in str(invoked(*words).exception)
    rotated = invoked(*words, "--keys", str(anna), "--json")
    assert json.loads(rotated.stdout)["keys"] == [json.loads(shown.stdout)["keyid"]]
    shop.add()
    waits = invoked("publish", *home, "--json")
    assert "targets: needs 1 of 1" in json.loads(waits.stdout)["draft_waits"]
    assert invoked("publish", *home, "--keys", str(anna)).exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("add FILE --kind model --name a --version 1.2", "a whole number"),
        ("add FILE --kind app --name a --version 1", "kind"),
        ("add NONE --kind file --name a --version 1", "No such file"),
        ("add FILE --kind file --name a --version 1 --target ../a", "../a"),
        ("remove models/none", "no such target"),
        ("publish --renew leaf", "name one of root"),
        ("init --threshold leaf=1", "no role"),
        ("init", "a repository already"),
        ("rotate leaf", "no role"),
        ("rotate root --threshold 2 --keep", "root: 2 signatures are wanted of 1 key"),
        ("rotate root --public NONE", "holds no public key"),
        ("rotate root --public FILE", "holds no public key"),
    ],
)
def test_what_it_will_not_do(tmp_path: Path, shop: Shop, words: str, said: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    names = {"FILE": str(tmp_path / "file"), "NONE": str(tmp_path / "none")}
    asked = [names.get(word, word) for word in words.split()]
    keyed = ["--keys", str(shop.keys)] if asked[0] in ("init", "publish", "rotate") else []
    before = sorted(shop.metadata.iterdir())
    error = invoked(*asked, "--home", str(shop.repository.home), *keyed).exception
    assert isinstance(error, HoldfastError)
    assert said in str(error) + error.hint
    assert error.hint
    assert sorted(shop.metadata.iterdir()) == before


def test_without_a_repository(tmp_path: Path) -> None:
    error = invoked("publish", "--home", str(tmp_path)).exception
    assert isinstance(error, ConfigError)
    assert "updates init" in error.hint
    error = invoked("key", "../x", "--keys", str(tmp_path)).exception
    assert "no name of a key" in str(error)


def test_key_that_others_read(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    path = shop.keys / "targets-0.pem"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read"):
        shop.signers()
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(ConfigError, match="no private key"):
        shop.signers()
    with pytest.raises(NotNow, match="a key already"):
        keys.make(shop.keys, "root-0")


def test_overdue(tmp_path: Path) -> None:
    """A tenth of its time before it expires, a role is to be signed anew, by the keys at hand."""
    shop = Shop(tmp_path / "shop")
    late_s = NOW_S + 28 * DAY_S
    late = datetime.fromtimestamp(late_s, UTC)
    assert showing.document(shop.repository, late)["overdue"] == ["timestamp"]
    for path in shop.keys.glob("root-*"):
        path.unlink()
    shop.now_s = late_s
    shop.publish()
    document = showing.document(shop.repository, late)
    assert document["overdue"] == []
    assert document["roles"]["root"]["version"] == 1
    with pytest.raises(NotNow, match="root: needs 1 of 1 signature"):
        shop.publish("root")


def test_a_draft_that_waits_for_a_key_stops_no_renewal(tmp_path: Path) -> None:
    """The stick with the keys of targets is away for months; the timer goes on, and so do devices.
    Then the draft is published as it was."""
    shop, trust = Shop(tmp_path / "shop"), tmp_path / "trust"
    shop.add()
    stick = [(path, path.read_bytes()) for path in shop.keys.glob("targets-*")]
    for path, _ in stick:
        path.unlink()
    for month, renew in ((1, ()), (2, ("timestamp",)), (3, ())):
        shop.now_s = NOW_S + 28 * DAY_S * month
        assert shop.publish(*renew)
        seen = believe(shop.served, shop.root_file, trust, shop.now_s + 29 * DAY_S)
        assert (seen.targets, seen.versions["targets"]) == ([], 1)
    for path, content in stick:
        whole_file.replace(path, content, whole_file.private(path))
    for role in ("timestamp", "targets"):
        assert "--renew signs anew" in shop.publish(role), "though all keys are there"
        assert believe(shop.served, shop.root_file, trust, shop.now_s).targets == []
    assert shop.publish() == ""
    (found,) = believe(shop.served, shop.root_file, trust, shop.now_s, TARGET).targets
    assert found.path == TARGET
    place = shop.repository.place(TARGET, found.sha256)
    assert place.read_bytes() == CONTENT, "its content was not cleared away meanwhile"
    assert drafting.draft(shop.repository).empty


class Crash(BaseException):
    """The machine that publishes goes down."""


def crashes(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Before the write with this number, of a document."""
    real, left = whole_file.replace, [after]

    def replace(path: Path, content: bytes) -> None:
        if left[0] == 0:
            path.with_name(f"{path.name}.new").write_bytes(content[: len(content) // 2])
            raise Crash
        left[0] -= 1
        real(path, content)

    monkeypatch.setattr(whole_file, "replace", replace)


def rotated(role: str) -> Callable[[Shop], None]:
    def rotate(shop: Shop) -> None:
        state = shop.repository.state()
        name = f"{role}-{state.root.signed.version + 1}-new"
        fresh = keys.kept(shop.keys, name).public_key
        shop.signing().rotate(state, role, [fresh], 1, keep=False)

    return rotate


def republished(shop: Shop) -> None:
    shop.publish()


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize(
    "change", [republished, *map(rotated, ("root", "targets", "snapshot", "timestamp"))]
)
def test_crash_in_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Shop], None], after: int
) -> None:
    """Whatever is written by then, a new device and an old one believe; the next try goes well."""
    shop = Shop(tmp_path / "shop")
    old = tmp_path / "old"
    believe(shop.served, shop.root_file, old)
    shop.add()
    with monkeypatch.context() as bent:
        crashes(bent, after)
        with contextlib.suppress(Crash):
            change(shop)
    for device in (old, tmp_path / "new"):
        believe(shop.served, shop.root_file, device)
    change(shop)
    shop.publish()
    for device in (old, tmp_path / "new"):
        (found,) = believe(shop.served, shop.root_file, device).targets
        assert found.path == TARGET
    assert drafting.draft(shop.repository).empty


def test_crash_in_init(tmp_path: Path) -> None:
    """The keys that were made are used by the next try."""
    keys.make(tmp_path / "keys", "root-1")
    before = (tmp_path / "keys" / "root-1.pem").read_bytes()
    home = ("--home", str(tmp_path / "home"), "--keys", str(tmp_path / "keys"))
    assert invoked("init", *home).exit_code == 0
    assert (tmp_path / "keys" / "root-1.pem").read_bytes() == before
    assert Repository(tmp_path / "home").state().root.signed.version == 1


def test_lost_key_of_the_root(tmp_path: Path) -> None:
    """Two of three are enough, and make the third anew; a device follows from the first root."""
    shop = Shop(tmp_path / "shop", root=3)
    shop.signing().rotate(shop.repository.state(), "root", [], 2, keep=True)
    (shop.keys / "root-1.pem").unlink()
    fresh = [keys.make(shop.keys, f"root-new-{i}").public_key for i in range(3)]
    shop.signing().rotate(shop.repository.state(), "root", fresh, 2, keep=False)
    assert believe(shop.served, shop.root_file, tmp_path / "trust").versions["root"] == 3


def test_stolen_key(tmp_path: Path) -> None:
    """What a role's former key signs is believed by nobody who has come past its rotation."""
    shop = Shop(tmp_path / "shop")
    rotated("targets")(shop)
    believe(shop.served, shop.root_file, tmp_path / "trust")
    for path in shop.keys.glob("targets-*-new.pem"):
        path.unlink()
    shop.add()
    assert "not at hand" in shop.publish()
    with pytest.raises(NotNow, match="not at hand"):
        shop.publish("targets")
    shop.forge("2.targets.json", lambda signed: signed.update(version=3))
    with pytest.raises(NotFetched):
        believe(shop.served, shop.root_file, tmp_path / "other")


def test_terms(tmp_path: Path) -> None:
    home = ("--home", str(tmp_path / "home"), "--keys", str(tmp_path / "keys"))
    assert invoked("init", "--days", "timestamp=1", "--days", "root=3650", *home).exit_code == 0
    published = invoked("publish", "--renew", "root", *home, "--json")
    assert json.loads(published.stdout) == {"signed": {"root": 2}}
    status = json.loads(invoked("status", *home[:2], "--json").stdout)
    left = {role: one["left_days"] for role, one in status["roles"].items()}
    assert left["root"] > 3000
    assert left["timestamp"] <= 1
    assert left["targets"] > Terms().targets - 2
