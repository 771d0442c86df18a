"""The section `audio`: where sound comes from."""

from typing import Annotated

from msgspec import Meta, field

from agent.forms import Keep, Name, Seconds, Share
from agent.sections.part import Part


class Source(Part, frozen=True, kw_only=True, tag_field="kind"):
    """What all sources share. `keep: all` sends the raw audio too, beside the segments."""

    name: Name
    keep: Keep = "segments"


class File(Source, frozen=True, kw_only=True, tag="file"):
    """One recording, taken in once."""

    path: str


class Folder(Source, frozen=True, kw_only=True, tag="folder"):
    """Recordings that appear in a folder; each is moved to done/ or rejected/ below it.

    A file counts as complete when its size and time have not changed for `settle_s`.
    """

    path: str
    poll_s: Seconds = 1.0
    settle_s: Seconds = 2.0


class Loop(Source, frozen=True, kw_only=True, tag="loop"):
    """The recordings of a folder, played at the speed of real sound, again and again."""

    path: str


class Microphone(Source, frozen=True, kw_only=True, tag="microphone"):
    """An ALSA device, read by `arecord` (Debian: alsa-utils); `device` as `arecord -L` names it."""

    device: str = "default"
    rate_hz: Annotated[int, Meta(ge=8000, le=192_000)] = 48_000
    channels: Annotated[int, Meta(ge=1, le=8)] = 1
    retry_s: Seconds = 5.0


class Segments(Part, frozen=True):
    """When speech begins and ends.

    A segment opens at `open_probability`, ends after `hangover_s` below `close_probability`, is
    widened by `margin_s`, forgotten below `speech_s_min` of speech, and cut at `length_s_max`.
    """

    open_probability: Share = 0.6
    close_probability: Share = 0.4
    speech_s_min: Seconds = 0.2
    hangover_s: Seconds = 0.5
    margin_s: Seconds = 0.2
    length_s_max: Annotated[float, Meta(ge=1, le=300)] = 30.0


class Audio(Part, frozen=True):
    """Where sound comes from; `chunk_s` is how much of it waits at most before it is committed.

    It is heard in the domain `domain`; where `domains` has none of that name, it is one with the
    model `speech`, class realtime.
    """

    sources: list[File | Folder | Loop | Microphone] = field(default_factory=list)
    chunk_s: Annotated[float, Meta(ge=0.05, le=0.5)] = 0.5
    domain: Name = "audio"
    segments: Segments = field(default_factory=Segments)
