"""What the link tells of itself and its broker, as conditions (promise 4)."""

from paho.mqtt.reasoncodes import ReasonCode

from agent.config import Link as Settings
from agent.errors import LinkError
from agent.health.conditions import Conditions
from agent.protocol.topics import Topics
from agent.sync.mqtt.brokers import Brokers
from agent.sync.mqtt.faults import PATIENCE, TooLarge
from agent.sync.mqtt.reasons import NOBODY
from agent.sync.mqtt.terms import Terms


class Telling:
    """Holds and clears the link's conditions; decides nothing."""

    def __init__(self, settings: Settings, topics: Topics, conditions: Conditions) -> None:
        self._settings = settings
        self._topics = topics
        self._conditions = conditions

    def down(self, fault: LinkError) -> None:
        """There is no connection, and this is why."""
        remedy = fault.hint or PATIENCE
        self._conditions.hold("link_down", "link", "warning", str(fault), remedy)

    def why_down(self) -> tuple[str, float] | tuple[None, None]:
        """Why there is no connection, and for how many seconds there has been none."""
        held = (one for one in self._conditions.all() if one.name == "link_down")
        return next(((one.cause, round(one.age_s, 1)) for one in held), (None, None))

    def up(self, brokers: Brokers, terms: Terms) -> None:
        """There is one."""
        self._conditions.clear("link_down", "link")
        self.fallback(brokers)
        embedded = self._settings.broker_url is None and not brokers.fallen_back
        if not terms.lost or embedded:  # of the embedded broker another condition tells
            self._conditions.clear("broker_features", "link")
            return
        self._conditions.hold(
            "broker_features",
            "link",
            "note",
            f"{brokers.current.url} lacks: {'; '.join(terms.lost)}",
            "nothing has to be done; a broker that has all of MQTT 5 does without these costs",
        )

    def undated(self, known: str | None) -> None:
        """By what time the broker's certificate was judged, where it was by no clock's."""
        if known is None:
            self._conditions.clear("expiry_unjudged", "link")
            return
        self._conditions.hold(
            "expiry_unjudged",
            "link",
            "note",
            "whether the broker's certificate has expired was not judged, or not by a clock: its "
            f"chain and its name were; the time is {known}",
            "set up chrony (with rtcsync) or systemd-timesyncd; it is judged once the clock is "
            "synchronised",
        )

    def fallback(self, brokers: Brokers) -> None:
        """Which broker serves, if it is not the one that should."""
        if not brokers.fallen_back:
            self._conditions.clear("broker_fallback", "link")
            return
        self._conditions.hold(
            "broker_fallback",
            "link",
            "note",
            f"{brokers.current.url} serves in place of {brokers.preferred.url}: "
            f"{brokers.preferred.fault}",
            f"nothing has to be done: the way back is tried each {self._settings.prefer_s:.0f} s; "
            "if it stays so, check link.broker_url",
        )

    def taken_over(self, client_id: str) -> None:
        """Another connection with our client id was made, so the broker ended this one."""
        self._conditions.hold(
            "client_id_twice",
            "link",
            "warning",
            f"another device connects as {client_id}, and the broker then ends this connection",
            "give each device a device_id, or a link.client_id, of its own",
        )

    def lasted(self) -> None:
        """The connection is an old one by now: nobody takes it over."""
        self._conditions.clear("client_id_twice", "link")

    def heartbeat(self, fault: TooLarge | None) -> None:
        """Whether the heartbeat could be sent."""
        if fault is None:
            self._conditions.clear("heartbeat_too_large", "link")
        else:
            self._conditions.hold("heartbeat_too_large", "link", "warning", str(fault), fault.hint)

    def answered(self, topic: str, code: ReasonCode) -> None:
        """The broker's word on one message."""
        door = topic.removeprefix(f"{self._topics.root}/")
        if not code.is_failure:
            self._conditions.clear("broker_refused", door)
        else:
            self._conditions.hold(
                "broker_refused",
                door,
                "warning",
                f"the broker refused a message: {code}",
                f"allow this device to use {topic} on the broker",
            )
        if self._settings.ack_from == "ingest" or not door.startswith("up/"):
            return
        if code.value != NOBODY:
            self._conditions.clear("nobody_listens", door)
        else:
            self._conditions.hold(
                "nobody_listens",
                door,
                "note",
                "the broker took records that nobody has subscribed to, and with ack_from: broker "
                "they count as delivered",
                f"start what reads {topic}, or set link.ack_from to ingest",
            )
