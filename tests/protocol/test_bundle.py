"""The bundle's format: whole, or refused with a verdict."""

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import BundleError, ConfigError, ProtocolError
from agent.protocol import bundle, signing
from agent.records import Range

KEY = signing.Key(bytes(range(32)))
STRANGER = signing.Key(bytes(32))
COVERS = {"e": {"a": Range(1, 2)}}


def header(**other: object) -> bundle.Header:
    values = {
        **{"kind": "data", "device": "d", "export": "0123456789abcdef", "part": 1},
        **{"by": KEY.public, "created": "2026-01-01T00:00:00+00:00"},
    }
    return bundle.Header(**{**values, **other})  # type: ignore[arg-type]


def made(contents: list[bytes], of: bundle.Header | None = None, key: signing.Key = KEY) -> bytes:
    of = of or header()
    kind = bundle.BATCH if of.kind == "data" else bundle.ACK
    writer = bundle.Writer(of, key)
    parts = [writer.begin(), *(writer.frame(kind, content) for content in contents)]
    footer = bundle.Footer(frames=len(contents), records=2, blob_bytes=0, covers=COVERS)
    whole = b"".join([*parts, writer.end(footer)])
    assert len(whole) == writer.size_bytes
    return whole


def verdict(content: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        bundle.verify(io.BytesIO(content))
    assert caught.value.hint
    assert caught.value.exit_code == 7
    return caught.value.verdict


WHOLE = made([b"one", b"", b"three" * 10])


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_what_goes_in_comes_out(contents: list[bytes]) -> None:
    whole = made(contents)
    sealed = bundle.verify(io.BytesIO(whole))
    assert sealed.header == header() == bundle.opened(io.BytesIO(whole))
    assert (sealed.footer.frames, sealed.footer.covers) == (len(contents), COVERS)
    assert sealed.size_bytes == len(whole)
    assert [one for _, one in bundle.frames(io.BytesIO(whole))] == contents


def test_every_cut_is_told_as_one() -> None:
    for length in range(len(WHOLE)):
        assert verdict(WHOLE[:length]) == "cut_off", length


def test_a_cut_says_what_it_was_and_how_far_it_came() -> None:
    with pytest.raises(
        BundleError, match="part 1 of export 0123456789abcdef of device d"
    ) as caught:
        bundle.verify(io.BytesIO(WHOLE[:-1]))
    assert f"{len(WHOLE) - 1:,} bytes" in str(caught.value)


def test_every_flipped_bit_is_refused() -> None:
    for place in range(len(WHOLE)):
        for bit in (1, 128):
            spoilt = bytearray(WHOLE)
            spoilt[place] ^= bit
            verdict(bytes(spoilt))


@settings(max_examples=300)
@given(st.data())
def test_nothing_that_was_changed_passes(data: st.DataObject) -> None:
    """A stretch replaced, taken out, moved or put in, wherever it is."""
    first = data.draw(st.integers(0, len(WHOLE)))
    last = data.draw(st.integers(first, len(WHOLE)))
    other = data.draw(st.one_of(st.binary(max_size=50), st.just(WHOLE[first:last] * 2)))
    changed = WHOLE[:first] + other + WHOLE[last:]
    if changed != WHOLE:
        verdict(changed)


def test_frames_in_another_order_or_of_another_bundle_are_refused() -> None:
    swapped = WHOLE.replace(framed(b"one"), b"@").replace(framed(b""), framed(b"one"))
    assert verdict(swapped.replace(b"@", framed(b""))) == "damaged"
    foreign = made([b"two"], header(part=2))
    assert framed(b"two") in foreign
    assert verdict(WHOLE.replace(framed(b"one"), framed(b"two"))) == "damaged"


def framed(content: bytes) -> bytes:
    writer = bundle.Writer(header(), KEY)
    return writer.frame(bundle.BATCH, content)


def test_who_signs_in_anothers_name_is_found_out() -> None:
    assert verdict(made([b"one"], header(by=KEY.public), STRANGER)) == "damaged"
    assert verdict(made([b"one"], header(by="hf1pub:x"))) == "damaged"


def test_a_seal_of_the_beginning_is_none_of_the_whole() -> None:
    """The two seals cannot be swapped, nor a bundle ended at its first one."""
    writer = bundle.Writer(header(), KEY)
    begin = writer.begin()
    seal = begin[-64:]  # an Ed25519 signature
    assert WHOLE.startswith(begin)
    assert verdict(WHOLE[: -len(seal)] + seal) == "damaged"
    assert verdict(begin) == "cut_off"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "cut_off"),
        (b"HFB", "cut_off"),
        (b"\x89PNG\r\n\x1a\n....", "not_a_bundle"),
        (b"HFBNDL2\n.....", "version"),
        (b"age-encryption.org/v1\n-> X25519", "encrypted"),
        (WHOLE + b"x", "damaged"),
        (WHOLE + WHOLE, "damaged"),
        (bundle.MAGIC + b"H\xff\xff\xff\xff" + bytes(8), "damaged"),
        (bundle.MAGIC + WHOLE[8:9] + b"\x00\x00\x00\x00" + bytes(8), "damaged"),
        (made([b"a"], header(device="../etc")), "damaged"),
        (made([b"a"], header(export="x")), "damaged"),
        (made([b"a"], header(part=0)), "damaged"),
    ],
)
def test_what_is_none_is_told_apart(content: bytes, word: str) -> None:
    assert verdict(content) == word


def test_an_ack_bundle_holds_acks_alone() -> None:
    content = made([b"ack"], header(kind="ack"))
    assert bundle.verify(io.BytesIO(content)).header.kind == "ack"
    writer = bundle.Writer(header(), KEY)
    begin = writer.begin()
    writer._header = header(kind="ack")
    assert verdict(begin + writer.frame(bundle.ACK, b"") + bytes(9)) == "damaged"


class Slow(io.RawIOBase):
    """Gives a byte or two at a time, as a pipe may; counts what was asked for at once."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)
        self.most = 0

    def read(self, size: int = -1) -> bytes:
        self.most = max(self.most, size)
        return self._file.read(min(size, 2))


def test_a_reader_takes_what_it_gets_and_never_all_at_once() -> None:
    slow = Slow(WHOLE)
    assert bundle.verify(slow).size_bytes == len(WHOLE)  # type: ignore[arg-type]
    lies = Slow(bundle.MAGIC + b"H" + (60 << 20).to_bytes(4, "big") + bytes(100))
    with pytest.raises(BundleError, match="cut off"):
        bundle.verify(lies)  # type: ignore[arg-type]
    assert lies.most <= 1 << 20


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "var" / "device.key"
    first = signing.Key.kept(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert signing.Key.kept(path).public == first.public
    assert signing.is_signed(first.public, b"x", signing.Key.kept(path).sign(b"x"))
    assert not signing.is_signed(KEY.public, b"x", first.sign(b"x"))
    assert not signing.is_signed(first.public, b"y", first.sign(b"x"))
    assert signing.public_key(f" {first.public}\n") == first.public


def test_a_key_that_is_none_is_told_and_left(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="expected one line") as caught:
        signing.Key.kept(path)
    assert caught.value.hint
    assert path.read_text() == ""
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        signing.Key.kept(path)
    with pytest.raises(ConfigError, match="cannot be kept there"):
        signing.Key.kept(path / "below")


@pytest.mark.parametrize("text", ["", "hf1pub:", "hf1key:" + "A" * 43 + "=", "hf1pub:AAAA", "ä"])
def test_a_public_key_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ProtocolError, match="no public key"):
        signing.public_key(text)


def test_of_two_that_make_the_key_at_once_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    link = signing._link

    def late(partial: Path, to: Path) -> None:
        monkeypatch.setattr(signing, "_link", link)
        signing.Key.kept(path)  # the other is done while this one was about to be
        link(partial, to)

    monkeypatch.setattr(signing, "_link", late)
    mine = signing.Key.kept(path)
    assert mine.public == signing.Key.kept(path).public
    assert [one.name for one in tmp_path.iterdir()] == ["key"]
    assert path.stat().st_nlink == 1


@pytest.mark.parametrize(
    "wrong",
    [{"part": 0}, {"part": bundle.PARTS_MAX + 1}, {"follows": "\0"}, {"follows": "0" * 63}],
)
def test_a_header_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    assert verdict(made([], header(**wrong))) == "damaged"
    last = header(part=bundle.PARTS_MAX, follows="0" * 64)
    assert bundle.verify(io.BytesIO(made([], last))).header == last
