"""Room: what is refused before it begins, what gives way, and a disk that is full on the way."""

import hashlib
import os
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import TargetFile

from agent.updates.content import OFFERS_BYTES_MAX, Content
from agent.updates.fetched import NotFetched
from fleet.updates.draft import Draft
from tests.store.faults.disk import SMALL_MB, small
from tests.updates.bed import CONTENT, TARGET, Shop, content, silent

DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop")


def staged(tmp_path: Path) -> Path:
    return tmp_path / "device" / "staged"


async def refused(device: Content, target: str) -> NotFetched:
    with pytest.raises(NotFetched) as error:
        await device.fetch(target, silent)
    assert error.value.hint
    return error.value


async def test_larger_than_may_lie_here(tmp_path: Path, shop: Shop) -> None:
    shop.add(bytes(2 << 20), "files/large", kind="file")
    shop.publish()
    device = content(tmp_path / "device", shop, f"file://{shop.served}", staging_bytes_max=1 << 20)
    assert (await refused(device, "files/large")).reason == "too_large"


async def test_oldest_gives_way(tmp_path: Path, shop: Shop) -> None:
    """Parts and files that nobody dropped are bounded, and what is no content of ours is gone."""
    for name in ("a", "b"):
        shop.add(name.encode() * 600_000, f"files/{name}", kind="file")
    shop.publish()
    staged(tmp_path).mkdir(parents=True)
    part = staged(tmp_path) / f"{DIGEST}.part"
    part.write_bytes(bytes(100_000))
    (staged(tmp_path) / "foreign").write_bytes(b"?")
    os.utime(part, (1, 1))
    device = content(tmp_path / "device", shop, f"file://{shop.served}", staging_bytes_max=1 << 20)
    first = await device.fetch("files/a", silent)
    assert part.exists()
    assert not (staged(tmp_path) / "foreign").exists()
    second = await device.fetch("files/b", silent)
    assert not part.exists()
    assert not Path(first.path).exists()
    assert Path(second.path).exists()


async def test_no_space_before_it_begins(tmp_path: Path, shop: Shop) -> None:
    shop.add(bytes(100), "files/needs", kind="file", min_free_bytes=(SMALL_MB + 1) << 20)
    shop.publish()
    with small("tmpfs", tmp_path) as place:
        device = content(place / "device", shop, f"file://{shop.served}")
        error = await refused(device, "files/needs")
        assert error.reason == "no_space"
        assert not list((place / "device" / "staged").iterdir())


async def test_full_disk_on_the_way(tmp_path: Path) -> None:
    """Somebody else takes the room meanwhile: what has come is kept, and it goes on from there."""
    shop, data = Shop(tmp_path / "shop"), os.urandom(5 << 20)
    shop.add(data)
    shop.publish()
    with small("tmpfs", tmp_path) as place:
        rival = place / "rival"

        async def fills(share: float, _: str) -> None:
            if share < 0.5 and not rival.exists():
                with rival.open("wb") as file, pytest.raises(OSError, match="No space"):
                    while True:
                        file.write(bytes(65_536))

        device = content(place / "device", shop, f"file://{shop.served}")
        with pytest.raises(NotFetched) as error:
            await device.fetch(TARGET, fills)
        assert error.value.reason == "no_space"
        rival.unlink()
        part = next((place / "device" / "staged").glob("*.part"))
        assert part.stat().st_size > 0
        told: list[float] = []

        async def tell(share: float, _: str) -> None:
            told.append(share)

        fetched = await device.fetch(TARGET, tell)
        assert Path(fetched.path).read_bytes() == data
        assert told[0] > 1 / 5


async def test_more_targets_than_a_result_holds(tmp_path: Path, shop: Shop) -> None:
    """Those that are not told are counted, and can be fetched."""
    state = shop.repository.state()
    about = {"kind": "file", "name": "a", "version": "1"}
    for i in range(520):
        path = f"files/{i:03}-{'a' * 150}/{'b' * 150}/{'c' * 150}"
        told = {"custom": about if i else {"kind": "other"}}
        state.targets.signed.targets[path] = TargetFile(1, {"sha256": "0" * 64}, path, told)
    shop.signing().publish(state, Draft(), ["targets"])
    found = await content(tmp_path / "device", shop, f"file://{shop.served}").check()
    assert len(msgspec.json.encode(found)) < OFFERS_BYTES_MAX + 2048
    assert len(found.offers) > 100
    assert found.others == 1
    assert len(found.offers) + found.others + found.unlisted == 520
