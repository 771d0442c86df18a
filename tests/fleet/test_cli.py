"""The command line: what is wrong is said, with what to do, and ends with its exit code."""

from pathlib import Path

import pytest

from agent.records import Balance
from fleet.store import database
from fleet.store.cloud import Cloud
from tests.fleet.sender import Sender
from tests.fleet.test_gaps import fleet

BROKER = "mqtt://127.0.0.1:1"
S3 = ("--s3-bucket", "blobs")
WRONG = {
    "a broker that is none": (("--broker", "http://x"), 78),
    "a port that is none": (("--broker", "mqtt://localhost:99999"), 78),
    "a password in the address": (("--broker", "mqtt://user:hush@localhost"), 78),
    "a prefix with a wildcard": (("--broker", BROKER, "--prefix", "a/+"), 78),
    "a group with a slash": (("--broker", BROKER, "--group", "a/b"), 78),
    "a key without a certificate": (("--broker", BROKER, "--key-file", "k"), 78),
    "a password file that is not there": (
        ("--broker", BROKER, "--username", "u", "--password-file", "/nowhere"),
        78,
    ),
    "a database that is none": (("--broker", BROKER, "--database", "mysql://x"), 78),
    "a folder that cannot be written": (
        ("--broker", BROKER, "--database", "sqlite:////proc/x/f.db"),
        73,
    ),
    "a level that is none": (("--broker", BROKER, "--log-level", "loud"), 78),
    "no broker": ((), 2),
    "keys without a bucket": (("--broker", BROKER, "--s3-keys-file", "k"), 78),
    "a bucket that is none": (("--broker", BROKER, "--s3-bucket", "A_b"), 78),
    "no keys for the bucket": (("--broker", BROKER, *S3, "--s3-keys-file", "/nowhere"), 78),
    "no address of a store": (("--broker", BROKER, *S3, "--s3-endpoint", "s3"), 78),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(tmp_path: Path, what: str) -> None:
    arguments, code = WRONG[what]
    if "--database" not in arguments:
        arguments = (*arguments, "--database", f"sqlite:///{tmp_path}/f.db")
    done = fleet("ingest", *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "hush" not in done.stderr
    assert code == 2 or "try:" in done.stderr


def test_a_database_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = fleet("devices", "--database", f"sqlite:///{tmp_path}/none.db")
    assert (done.returncode, "no such database" in done.stderr) == (73, True)
    assert not list(tmp_path.iterdir()), "asking made nothing"
    done = fleet("devices", "--database", f"sqlite://///{tmp_path}/none.db")
    assert f"{tmp_path}/none.db: there is no such database" in done.stderr, "slashes are no host"
    done = fleet("gaps", "--database", "postgresql://127.0.0.1:1/none")
    assert (done.returncode, "try:" in done.stderr) == (73, True)


async def test_what_a_device_says_is_shown_as_it_is(tmp_path: Path) -> None:
    """Neither markup, which would end the command for all devices, nor a terminal's commands."""
    url = f"sqlite:///{tmp_path}/f.db"
    sender = Sender("[b]", "[e]", "[s]")
    async with Cloud(database.open(url)) as cloud:
        await cloud.store([sender.batch([1, 3])])
        wrong = Balance(produced=9, delivered=9, held=0, dropped={})
        await cloud.note([], {sender.device: sender.heartbeat(wrong, "[/x] \x1b[2J")})
    done = fleet("devices", "--database", url)
    assert done.returncode == 0, done.stderr
    assert "[b]" in done.stdout
    assert "[/x] ?[2J" in done.stdout
    done = fleet("gaps", "--database", url)
    assert done.stdout.count("[b]") == 2, "a gap, and a ledger that differs"
    assert done.stdout.count("[e]") == done.stdout.count("[s]") == 2
