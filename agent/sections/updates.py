"""The section `updates`: content of the fleet, signed by The Update Framework."""

from typing import Annotated

from msgspec import Meta, field

from agent.forms import BYTES_MAX, Rate, Seconds, Tag
from agent.sections.part import Part

SOURCE = r"(https?://[^\s/?#@]+(/[^\s?#]*)?|file:///[^\s]*|mqtt:)"
Source = Annotated[
    str,
    Meta(
        pattern=rf"^{SOURCE}$",
        description="http://HOST/..., https://HOST/..., file:///FOLDER, or mqtt: for the broker",
    ),
]


class Updates(Part, frozen=True, kw_only=True):
    """Where content comes from, and what is believed of it (docs/updates.md).

    `root_file` is the root.json that this device trusts from the beginning; none: nothing is
    fetched. The sources in `urls` are tried in their order; `mqtt:` asks the controller, by the
    link's broker. What `link.ca_file`, `link.cert_file` and `link.key_file` say holds for https.

    What is fetched lies in the store's folder, at most `staging_bytes_max` of it, and only while
    `free_bytes_min` stays free. A check of the metadata has `check_s_max`, a fetch `fetch_s_max`;
    no byte in `stall_s`, and it is tried again after `backoff_s_min`, up to `backoff_s_max`, and
    given up after `tries_max` tries that brought nothing. `tags` are words for what this device is:
    a target may be for those alone that have one of its.

    A new version of the agent has `confirm_s` from its start to prove itself: all moves, nothing is
    critical that was not so before, and the link is up if it was. Else the former one is back.
    """

    root_file: str | None = None
    urls: list[Source] = field(default_factory=list)
    staging_bytes_max: Annotated[int, Meta(ge=1024**2, le=BYTES_MAX)] = 4 * 1024**3
    free_bytes_min: Annotated[int, Meta(ge=0, le=BYTES_MAX)] = 256 * 1024**2
    rate_bytes_per_s_max: Rate | None = None
    check_s_max: Seconds = 300.0
    fetch_s_max: Seconds = 86_400.0
    stall_s: Seconds = 60.0
    tries_max: Annotated[int, Meta(ge=1, le=1000)] = 10
    backoff_s_min: Seconds = 1.0
    backoff_s_max: Seconds = 120.0
    confirm_s: Annotated[float, Meta(ge=60, le=3000)] = 600.0
    tags: list[Tag] = field(default_factory=list)
