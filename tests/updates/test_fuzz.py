"""Metadata that anybody bent: each is believed or refused with a reason; nothing else happens.

HOLDFAST_LONG=1 takes 100,000, HOLDFAST_SEED=N those of a failure that was printed.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Metadata

from agent.updates.fetched import NotFetched, Reason
from tests.updates.bed import TARGET, FolderLine, Shop, believe, judged

CASES = 91_000 if os.environ.get("HOLDFAST_LONG") == "1" else 300
ROOT_FILES = CASES // 10  # beside those: in all 100,100
SEED = int(os.environ.get("HOLDFAST_SEED", "0")) or random.randrange(1, 2**31)
Bend = Callable[..., bytes]
VALUES: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 10**400, 1.5, "", "x", "../..", "\ud800", "9" * 5000),
    *([], {}, [[]], {"": {}}, "2026-13-45T00:00:00Z", "9999-12-31T23:59:59Z", "ed25519", "🔑"),
]


def bent_bytes(data: bytes, dice: random.Random) -> bytes:
    """A few bytes other, gone, twice or cut off."""
    found = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(found)) if found else 0
        match dice.randrange(5):
            case 0:
                found[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del found[at : at + dice.randint(1, 40)]
            case 2:
                found[at:at] = found[at : at + dice.randint(1, 200)]
            case 3:
                found[at:at] = dice.choice([b"[", b'{"a":', b"\x00", b"\xff\xfe", b"1e999"]) * 99
            case _:
                del found[at:]
    return bytes(found)


def bent_form(data: bytes, dice: random.Random) -> bytes:
    """The same JSON, with values that are other, missing, moved or twice."""
    document = json.loads(data)
    for _ in range(dice.randint(1, 3)):
        spots = list(_spots(document))
        if not spots:
            break
        holder, key = dice.choice(spots)
        match dice.randrange(4):
            case 0:
                holder[key] = dice.choice(VALUES)
            case 1:
                del holder[key]
            case 2:
                other, at = dice.choice(spots)
                holder[key] = _plain(other.get(at))
            case _:
                holder[str(dice.choice(VALUES))[:40]] = _plain(holder.get(key))
    return _dumped(document)


def _spots(value: Any) -> list[tuple[dict[str, Any], str]]:
    found: list[tuple[dict[str, Any], str]] = []
    level = [value]
    while level:
        one = level.pop()
        if isinstance(one, dict):
            found += [(one, key) for key in one]
            level += one.values()
        elif isinstance(one, list):
            level += one
    return found


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


class Bent(FolderLine):
    """A repository of which one document comes bent."""

    def __init__(self, root: Path, path: str, bend: Callable[[bytes], bytes]) -> None:
        super().__init__(root)
        self._path = path
        self._bend = bend

    def want(self, path: str, bytes_max: int) -> bytes | None:
        data = super().want(path, bytes_max)
        if data is not None and path == self._path:
            data = self._bend(data)[: bytes_max + 1]
        return data


def thief(shop: Shop, role: str) -> Callable[[bytes], bytes]:
    """Signs whatever it is, by all keys of a role, as it stands."""
    keys = shop.signers()
    root: Any = Metadata.from_bytes(shop.root_file.read_bytes()).signed

    def signed(data: bytes) -> bytes:
        document = json.loads(data)
        text = (encode_canonical(document.get("signed")) or "").encode()
        signatures = [keys[one].sign(text).to_dict() for one in root.roles[role].keyids]
        return _dumped({**document, "signatures": signatures})

    return signed


def bent_by_a_thief(shop: Shop, name: str) -> Bend:
    sign = thief(shop, name.split(".")[-2])

    def bend(data: bytes, dice: random.Random) -> bytes:
        bent = bent_form(data, dice)
        try:
            return sign(bent)
        except (FormatError, UnicodeEncodeError, AttributeError):  # what nobody can sign
            return bent

    return bend


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("fuzz")
    shop = Shop(folder / "shop", root=2)
    shop.add(tags=["device-7"], min_free_bytes=5)
    shop.publish()
    shop.publish("root")
    shop.publish("targets")

    def unhashed(signed: dict[str, Any]) -> None:  # so that what is bent below is looked at
        for one in signed["meta"].values():
            one.pop("hashes")
            one.pop("length")

    shop.forge("3.snapshot.json", unhashed, "snapshot")
    shop.forge("timestamp.json", unhashed, "timestamp")
    return shop


NAMES = ["2.root.json", "timestamp.json", "3.snapshot.json", "3.targets.json"]


def test_bent(tmp_path: Path, shop: Shop) -> None:
    """Sometimes re-signed by the role's own keys: what a thief of them could write."""
    reasons: dict[str, int] = {}
    thieves = {name: bent_by_a_thief(shop, name) for name in NAMES}
    for case in range(CASES):
        found = _case(shop, thieves, case, tmp_path / "trust")
        reasons[found] = reasons.get(found, 0) + 1
        assert found in ("believed", *get_args(Reason))
    assert 0 < reasons["believed"] < CASES
    assert {"unreadable", "bad_signature"} <= set(reasons)
    print(f"HOLDFAST_SEED={SEED}: {reasons}")


def _case(shop: Shop, thieves: dict[str, Bend], case: int, trust: Path) -> str:
    dice = random.Random(SEED * 100_000 + case)
    name = dice.choice(NAMES)
    bend = dice.choice([bent_bytes, bent_form, thieves[name]])
    shutil.rmtree(trust, ignore_errors=True)
    trust.mkdir(parents=True)
    line = Bent(shop.served, f"metadata/{name}", partial(bend, dice=dice))
    try:
        judged(line, shop.root_file, trust, target=TARGET)
    except NotFetched as error:
        assert error.hint, error
        assert msgspec.json.encode(str(error))
        return error.reason
    except BaseException as error:
        error.add_note(f"HOLDFAST_SEED={SEED}: case {case}")
        raise
    return "believed"


def test_bent_root_file(tmp_path: Path, shop: Shop) -> None:
    """What the device is told to trust may be damaged too."""
    for case in range(ROOT_FILES):
        dice = random.Random(SEED * 100_000 + case)
        bend = dice.choice([bent_bytes, bent_form])
        root_file = tmp_path / "root.json"
        root_file.write_bytes(bend(shop.root_file.read_bytes(), dice))
        trust = tmp_path / "trust"
        shutil.rmtree(trust, ignore_errors=True)
        try:
            believe(shop.served, root_file, trust)
        except NotFetched as error:
            assert error.hint, f"HOLDFAST_SEED={SEED}: case {case}"
