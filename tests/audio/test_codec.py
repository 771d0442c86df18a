"""Recordings of every usual format become 16 kHz mono PCM; what is none is refused, and why."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from agent.audio import codec
from agent.errors import AudioError
from agent.records import RATE_HZ

TONE_HZ = 1000.0
LEVEL = 0.5
SECONDS = 2.0
PLACES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

# suffix: libsndfile's format and subtype
FORMATS = {
    "16.wav": ("WAV", "PCM_16"),
    "24.wav": ("WAV", "PCM_24"),
    "32.wav": ("WAV", "PCM_32"),
    "8.wav": ("WAV", "PCM_U8"),
    "float.wav": ("WAV", "FLOAT"),
    "ulaw.wav": ("WAV", "ULAW"),
    "16.flac": ("FLAC", "PCM_16"),
    "24.flac": ("FLAC", "PCM_24"),
    "aiff": ("AIFF", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
}
RATES = (8000, 16_000, 44_100, 48_000, 96_000)


def tone(rate: int, hz: float = TONE_HZ, seconds: float = SECONDS) -> np.ndarray:
    """A sine of LEVEL."""
    return LEVEL * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def decoded(path: Path, skip: int = 0) -> np.ndarray:
    """A whole recording."""
    blocks = list(codec.decode(path, 4096, skip))
    assert all(len(block) == 4096 for block in blocks[:-1])
    return np.concatenate([np.zeros(0, np.int16), *blocks])


def is_the_tone(pcm: np.ndarray, level: float = LEVEL, tolerance: float = 0.02) -> bool:
    """Whether sound is the tone, by its strongest frequency and the level of its middle."""
    middle = pcm[RATE_HZ // 4 : -RATE_HZ // 4] / 32768.0
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    peak_hz = np.argmax(spectrum) * RATE_HZ / len(middle)
    rms = np.sqrt(np.mean(middle**2))
    return abs(peak_hz - TONE_HZ) < 2 and abs(rms * np.sqrt(2) / level - 1) < tolerance


def refused(path: Path) -> AudioError:
    """The refusal of a recording: it names the file and says what to do."""
    with pytest.raises(AudioError) as caught:
        codec.check(path)
    assert str(caught.value).startswith(f"{path.name}: ")
    assert caught.value.hint
    return caught.value


def taken_or_refused(path: Path) -> int:
    """The samples of what may or may not be a recording; -1 when it was refused."""
    try:
        seconds = codec.check(path)
        pcm = decoded(path)
    except AudioError as error:
        assert str(error).startswith(f"{path.name}: ")
        assert error.hint
        return -1
    assert abs(len(pcm) - seconds * RATE_HZ) <= 1
    return len(pcm)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_tone_keeps_its_length_its_frequency_and_its_level(
    tmp_path: Path, suffix: str, rate: int, channels: int
) -> None:
    form, subtype = FORMATS[suffix]
    path = tmp_path / f"tone.{suffix}"
    sound = np.stack([tone(rate)] * channels, axis=1)
    soundfile.write(path, sound, rate, format=form, subtype=subtype)
    assert codec.check(path) == SECONDS
    pcm = decoded(path)
    assert abs(len(pcm) - SECONDS * RATE_HZ) <= 1
    assert is_the_tone(pcm)


@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
def test_an_opus_tone_keeps_its_length_its_frequency_and_its_level(
    tmp_path: Path, rate: int
) -> None:
    path = tmp_path / "tone.opus"
    soundfile.write(path, tone(rate), rate, format="OGG", subtype="OPUS")
    pcm = decoded(path)
    assert abs(len(pcm) - SECONDS * RATE_HZ) <= 1
    assert is_the_tone(pcm, tolerance=0.1)


def test_an_mp3_tone_keeps_its_length_its_frequency_and_its_level(tmp_path: Path) -> None:
    path = tmp_path / "tone.mp3"
    soundfile.write(path, tone(44_100), 44_100, format="MP3")
    pcm = decoded(path)
    assert abs(len(pcm) - SECONDS * RATE_HZ) <= 1
    assert is_the_tone(pcm, tolerance=0.1)


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "left.wav"
    left = tone(48_000)
    soundfile.write(path, np.stack([left, np.zeros_like(left)], axis=1), 48_000)
    assert is_the_tone(decoded(path), LEVEL / 2)


def test_what_16_khz_cannot_carry_is_left_out_and_not_folded_back(tmp_path: Path) -> None:
    path = tmp_path / "high.wav"
    soundfile.write(path, tone(44_100, hz=10_000), 44_100)
    assert np.abs(decoded(path)[RATE_HZ // 4 : -RATE_HZ // 4]).max() < 33  # -60 dB


def test_sound_beyond_full_scale_is_clipped_and_does_not_wrap(tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    soundfile.write(path, 4 * tone(16_000), 16_000, subtype="FLOAT")
    pcm = decoded(path)
    assert (pcm.max(), pcm.min()) == (32767, -32768)
    assert np.array_equal(np.sign(pcm), np.sign(np.rint(tone(16_000) * 32768)))


def test_16_khz_mono_16_bit_passes_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "noise.wav"
    noise = np.random.default_rng(1).integers(-32768, 32768, 70_001).astype(np.int16)
    soundfile.write(path, noise, RATE_HZ)
    assert np.array_equal(decoded(path), noise)


@pytest.fixture(scope="module", params=["44.wav", "48.opus", "16.flac"])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds of noise, longer than what is read at once."""
    path = tmp_path_factory.mktemp("recording") / request.param
    rate, form = {"44": (44_100, "WAV"), "48": (48_000, "OGG"), "16": (16_000, "FLAC")}[path.stem]
    noise = np.random.default_rng(2).uniform(-0.5, 0.5, 10 * rate)
    soundfile.write(path, noise, rate, format=form, subtype="OPUS" if form == "OGG" else None)
    return path


@pytest.fixture(scope="module")
def whole(recording: Path) -> np.ndarray:
    """The recording, decoded from its beginning."""
    return decoded(recording)


@settings(PLACES, max_examples=30)
@given(skip=st.integers(0, 11 * RATE_HZ), block=st.integers(100, 40_000))
def test_a_decode_from_the_middle_equals_the_tail_of_the_whole(
    recording: Path, whole: np.ndarray, skip: int, block: int
) -> None:
    blocks = list(codec.decode(recording, block, skip))
    assert all(len(b) == block for b in blocks[:-1])
    assert all(0 < len(b) <= block for b in blocks[-1:])
    tail = np.concatenate([np.zeros(0, np.int16), *blocks])
    assert np.array_equal(tail, whole[skip:])


@PLACES
@given(pcm=arrays.arrays(np.int16, st.integers(1, 5000)))
def test_flac_gives_back_every_sample(tmp_path: Path, pcm: np.ndarray) -> None:
    flac, digest = codec.encode(pcm)
    path = tmp_path / "segment.flac"
    path.write_bytes(flac)
    assert np.array_equal(decoded(path), pcm)
    assert digest == hashlib.sha256(flac).hexdigest()


def test_a_text_named_wav_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.wav"
    path.write_text("remember the milk\n" * 100)
    error = refused(path)
    assert "not a recording" in str(error)
    assert "expected WAV, FLAC" in error.hint
    with pytest.raises(AudioError, match=r"notes\.wav"):
        decoded(path)


def test_a_file_of_no_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    assert "0 bytes" in str(refused(tmp_path / "empty.wav"))


def test_a_recording_of_no_sound_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), RATE_HZ)
    assert "no sound" in str(refused(tmp_path / "silent.wav"))


def test_a_folder_named_wav_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    refused(tmp_path / "folder.wav")
    with pytest.raises(AudioError, match=r"folder\.wav"):
        decoded(tmp_path / "folder.wav")


@pytest.mark.parametrize("recording", ["16.flac"], indirect=True)
@PLACES
@given(share=st.floats(0.002, 0.999))
def test_a_flac_that_breaks_off_is_refused(recording: Path, share: float) -> None:
    content = recording.read_bytes()
    path = recording.with_name("cut.flac")
    path.write_bytes(content[: int(share * len(content))])
    refused(path)


@pytest.mark.parametrize("seconds", [1, 3, 12])
def test_a_flac_that_breaks_off_is_called_cut_short_and_not_another_format(
    tmp_path: Path, seconds: float
) -> None:
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(3).uniform(-0.5, 0.5, seconds * RATE_HZ), RATE_HZ)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    error = refused(path)
    assert "breaks off" in str(error)
    assert "copy it here again" in error.hint


@settings(PLACES, max_examples=50)
@given(share=st.floats(0, 0.999))
def test_a_recording_that_breaks_off_is_refused(recording: Path, share: float) -> None:
    content = recording.read_bytes()
    path = recording.with_name(f"cut{recording.suffix}")
    path.write_bytes(content[: int(share * len(content))])
    refused(path)


@pytest.mark.parametrize("size", [0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF])
def test_a_wav_written_into_a_pipe_is_taken_as_far_as_it_goes(tmp_path: Path, size: int) -> None:
    """sox, arecord and ffmpeg write such sizes; so does a recorder that lost its power."""
    path = tmp_path / "streamed.wav"
    soundfile.write(path, tone(16_000, seconds=2), 16_000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content[:-1000])
    assert codec.check(path) == pytest.approx(2 - 500 / 16_000)
    assert len(decoded(path)) == 32_000 - 500


@PLACES
@given(content=st.binary(), suffix=st.sampled_from(codec.SUFFIXES))
def test_any_bytes_are_taken_or_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    taken_or_refused(path)


@settings(PLACES, max_examples=50)
@given(st.data())
def test_a_recording_damaged_behind_its_header_is_taken_or_refused(
    recording: Path, data: st.DataObject
) -> None:
    content = bytearray(recording.read_bytes()[:60_000])
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(200, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = recording.with_name(f"damaged{recording.suffix}")
    path.write_bytes(content)
    taken_or_refused(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_samples_that_are_no_numbers_are_taken_or_refused(
    tmp_path: Path, rate: int, value: float
) -> None:
    sound = tone(rate)
    sound[rate // 2] = value
    path = tmp_path / "broken.wav"
    soundfile.write(path, sound, rate, subtype="FLOAT")
    taken_or_refused(path)


def test_a_streamed_flac_that_does_not_tell_its_length_is_taken_whole(tmp_path: Path) -> None:
    """As `flac -` and ffmpeg write it into a pipe: 0 for the number of samples."""
    path = tmp_path / "streamed.flac"
    soundfile.write(path, tone(16_000, seconds=6), 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert codec.check(path) == 6.0
    assert len(decoded(path)) == 6 * RATE_HZ


@pytest.mark.parametrize("rate", [1, 100, 2_147_483_647])
def test_a_rate_that_no_recording_has_is_refused(tmp_path: Path, rate: int) -> None:
    """Taken at its word, a header of 1 Hz makes gigabytes of sound of a small file."""
    path = tmp_path / "rate.wav"
    soundfile.write(path, tone(16_000, seconds=0.1), rate)
    refused(path)


def test_no_more_is_decoded_than_may_be_over_all_channels(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros((8000, 8), np.int16), 8000)
    assert codec.check(path, 1.0, 64_000) == 1.0
    with pytest.raises(codec.TooLong, match=r"more than 0\.5 s of sound at 8000 Hz"):
        codec.check(path, 1.0, 32_000)
