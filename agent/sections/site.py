"""The sections `sparkplug` and `home_assistant`: other systems of the site that see the device."""

from typing import Annotated

from msgspec import Meta, field

from agent.forms import Broker, Prefix, Seconds
from agent.sections.part import Part

SparkplugId = Annotated[
    str,
    Meta(
        pattern=r"^[^+/#\x00-\x1f\x7f]{1,128}$",
        description="1 to 128 characters, none of them +, / or #",
    ),
]


class Site(Part, frozen=True, kw_only=True):
    """A connection beside the link's. Without `broker_url` it is to the link's brokers, with what
    the link has for them; each key that is set goes before the link's.

    With `broker_url` nothing of the link's (its password, its certificate) is shown there. A change
    is told at once where it is a condition's, else within `sample_s`.
    """

    broker_url: Broker | None = None
    fallback_urls: list[Broker] = field(default_factory=list)
    client_id: str | None = None
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    alpn: str | None = None
    sample_s: Seconds = 5.0


class Sparkplug(Site, frozen=True, kw_only=True):
    """An edge node of Sparkplug B: `group_id` and `edge_node_id` (none: the device's id) name it.

    With `primary_host_id` it is silent while that host is not there.
    """

    group_id: SparkplugId
    edge_node_id: SparkplugId | None = None
    primary_host_id: SparkplugId | None = None


class HomeAssistant(Site, frozen=True, kw_only=True):
    """Entities in Home Assistant. `discovery_prefix` is the one that its MQTT integration has, and
    `birth_topic` where it says that it is there; `name` (none: the device's id) is what it shows.

    Where the section is taken away, or says another place, the entities there are removed.
    """

    discovery_prefix: Prefix = "homeassistant"
    birth_topic: Prefix = "homeassistant/status"
    name: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
