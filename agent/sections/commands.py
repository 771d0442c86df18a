"""Section `commands`: who may give orders from afar, and how many are kept."""

from typing import Annotated, Literal

from msgspec import Meta, field

from agent.forms import PublicKey, Seconds
from agent.sections.part import Part

PlantOrder = Literal["device.reboot", "device.restart", "sync.now", "sync.pause", "sync.resume"]


class Commands(Part, frozen=True):
    """Orders from the link are believed as the broker lets them through; with `signed: grave` those
    that can take the device out of service must be signed by one of `keys`, too, with `all` every
    one (`holdfast-fleet bundle key` prints a key). Sparkplug hosts and Home Assistant cannot sign:
    what they may order although it would have to be signed stands in `from_plant`. Up to
    `rows_max` commands are kept, for `keep_s` of running time after their end: so long the same id
    has no second effect.
    """

    signed: Literal["never", "grave", "all"] = "grave"
    keys: list[PublicKey] = field(default_factory=list)
    from_plant: list[PlantOrder] = field(default_factory=list)
    rows_max: Annotated[int, Meta(ge=100, le=100_000)] = 10_000
    keep_s: Seconds = 2_592_000
