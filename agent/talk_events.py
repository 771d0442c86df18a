"""What a live stream is told beside its sound, as JSON texts with the key `event`."""

from msgspec import Struct

from agent.records import RATE_HZ


class Event(Struct, frozen=True, tag_field="event"):
    """What is told beside the sound. Times are seconds from the stream's beginning."""


class Ready(Event, frozen=True, tag="ready"):
    """Sound is heard from now on, or again. Denoised sound is `lag_samples` behind."""

    source: str
    keep: bool
    model: str
    hop_samples: int
    lag_samples: int
    rate_hz: int = RATE_HZ
    channels: int = 1
    codec: str = "s16le"


class SpeechBegin(Event, frozen=True, tag="speech_begin"):
    """Somebody speaks."""

    at_s: float


class SpeechEnd(Event, frozen=True, tag="speech_end"):
    """Nobody speaks any more."""

    at_s: float


class SegmentKept(Event, frozen=True, tag="segment"):
    """A segment is in the store."""

    id: str
    stream: str
    seq: int
    take: int
    start_s: float
    length_s: float
    speech: float


class End(Event, frozen=True, tag="end"):
    """All that came is answered. `heard`: there is no segment to come; None: nothing is kept."""

    samples: int
    length_s: float
    segments: int
    take: int | None
    heard: bool | None


class Trouble(Event, frozen=True, tag="error"):
    """What is wrong; the stream goes on where the connection does."""

    error: str
    hint: str
