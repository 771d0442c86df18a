"""Where the site's systems are reached: which keys hold, and who learns which secret."""

from typing import Any

import msgspec
import pytest

from agent import config
from agent.sync.plant.place import place_of

LINK = msgspec.convert(
    {
        "ack_from": "ingest",
        "broker_url": "mqtts://cloud:8883",
        "fallback_urls": ["mqtts://second"],
        "client_id": "own",
        "username": "u",
        "password_file": "/secret",
        "cert_file": "/cert",
        "key_file": "/key",
        "ca_file": "/ca",
        "alpn": "x-amzn-mqtt-ca",
        "keepalive_s": 33,
    },
    config.Link,
)
SECRETS = ("username", "password_file", "cert_file", "key_file", "ca_file", "alpn")


def place(**section: Any) -> Any:
    settings = msgspec.convert({"group_id": "g", **section}, config.Sparkplug)
    return place_of("sparkplug", settings, LINK, "mqtts://cloud:8883", "dev")


def test_without_a_broker_of_its_own_it_goes_where_the_link_goes_as_another_client() -> None:
    found = place()
    assert found.urls == ["mqtts://cloud:8883", "mqtts://second"]
    assert found.client_id == "holdfast-dev-sparkplug"
    assert found.settings.password_file == "/secret"
    said = "link.cert_file: /cert: no file; check link.keepalive_s"
    assert found.named(said) == said


def test_each_key_goes_before_the_links() -> None:
    found = place(username="scada", client_id="node-7")
    assert (found.settings.username, found.settings.password_file) == ("scada", "/secret")
    assert found.client_id == "node-7"
    assert found.named("link.username: no; check link.password_file") == (
        "sparkplug.username: no; check link.password_file"
    )


def test_another_broker_learns_nothing_of_what_the_link_has() -> None:
    found = place(broker_url="mqtt://plant", username="scada")
    assert found.urls == ["mqtt://plant"]
    assert [getattr(found.settings, key) for key in SECRETS] == ["scada", *[None] * 5]
    assert found.settings.keepalive_s == 33
    assert found.client_id == "holdfast-dev-sparkplug"
    assert found.named("check link.broker_url and link.cert_file, link.keepalive_s") == (
        "check sparkplug.broker_url and sparkplug.cert_file, link.keepalive_s"
    )


@pytest.mark.parametrize("group", ["", "a/b", "a+", "#", "x" * 129, "a\nb"])
def test_names_that_are_no_part_of_a_topic_are_refused(group: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"group_id": group}, config.Sparkplug)
