"""Where a system of the site is reached, and as whom: the section's keys, and the link's."""

import re

from msgspec import Struct
from msgspec.structs import replace

from agent.config import Link
from agent.sections.site import Site

OWN = ("client_id", "username", "password_file", "ca_file", "cert_file", "key_file", "alpn")


class Place(Struct, frozen=True):
    """`settings` are a link's, as a Connection takes them; `urls` the brokers, the first preferred.

    `section` is the name of the section, `keys` those of its keys that hold instead of the link's.
    `subject` is what its conditions are about.
    """

    section: str
    subject: str
    settings: Link
    urls: list[str]
    client_id: str
    keys: frozenset[str]

    def named(self, text: str) -> str:
        """What is said of the link's keys, of those that hold here."""
        return re.sub(
            r"\blink\.([a-z_]+)",
            lambda found: f"{self.section}.{found[1]}" if found[1] in self.keys else found[0],
            text,
        )


def place_of(section: str, site: Site, link: Link, link_url: str, device: str) -> Place:
    """`link_url` is the broker that the link prefers: the embedded one if none is named."""
    own = {key: value for key in OWN if (value := getattr(site, key)) is not None}
    if site.broker_url is not None:  # it learns nothing of what the link has for its broker
        settings = replace(link, **(dict.fromkeys(OWN) | own))
        urls, keys = [site.broker_url, *site.fallback_urls], {"broker_url", *OWN}
    else:
        settings = replace(link, **({"client_id": None} | own))
        urls, keys = [link_url, *(site.fallback_urls or link.fallback_urls)], {*own, "client_id"}
    client_id = settings.client_id or f"holdfast-{device}-{section.replace('_', '-')}"
    return Place(section, section, settings, urls, client_id, frozenset(keys))
