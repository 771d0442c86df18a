"""Which broker is asked next, and how: pure choice, nothing is opened here.

The brokers stand in order of preference. After a CONNECT that failed the next one is asked at once;
when all were asked, a round is over, and the link waits. A connection that was lost is followed by
a wait and the first broker, or by the next one if it did not last.

Of each broker it is remembered which version of MQTT it speaks. MQTT 5 is asked for first. One that
refuses it is asked for 3.1.1 for a day; one that hangs up on it twice, until it has served once.
"""

from collections.abc import Sequence

from paho.mqtt.enums import MQTTProtocolVersion

from agent.clock import Clock
from agent.errors import LinkError
from agent.sync.mqtt.faults import BadClientId, NoRetain, Refused, Unspoken

UNSPOKEN_MAX = 2  # CONNECTs without an answer before the other protocol version is tried
REMEMBERED_S = 86_400.0  # a broker that refused MQTT 5 may be replaced by a better one
MQTT5, MQTT311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311


class Broker:
    """One address, and how to ask whoever is there."""

    def __init__(self, url: str, best: MQTTProtocolVersion, clock: Clock) -> None:
        self.url = url
        self.version = best
        self.retains = True  # whether it takes a last will that is to be retained
        self.fault = ""  # why it did not serve, when it last did not
        self.knows_us = True  # it has not refused the device's own client id
        self._best = best
        self._clock = clock
        self._unspoken = 0
        self._refused_until = 0.0  # monotonic

    def served(self) -> None:
        """A connection to it is over, or a probe of it came through."""
        self._unspoken = 0
        if self._clock.monotonic() >= self._refused_until:
            self.version = self._best

    def failed(self, fault: LinkError) -> bool:
        """A CONNECT failed; True: asked in another way it may well be accepted at once."""
        self.fault = str(fault)
        self.knows_us = not isinstance(fault, BadClientId)
        if isinstance(fault, NoRetain):
            again, self.retains = self.retains, False
            return again
        if isinstance(fault, Refused):
            again = self.version == MQTT5
            if again:
                self._refused_until = self._clock.monotonic() + REMEMBERED_S
            self._ask_otherwise()
            return again
        if isinstance(fault, Unspoken):
            self._unspoken += 1
            if self._unspoken == UNSPOKEN_MAX:
                self._ask_otherwise()
        return False

    def _ask_otherwise(self) -> None:
        self._unspoken = 0
        self.version = MQTT311 if self.version == self._best else self._best


class Brokers:
    """All of them; `current` is the one to ask, or that serves."""

    def __init__(
        self, urls: Sequence[str], clock: Clock, best: MQTTProtocolVersion = MQTT5
    ) -> None:
        """`best` is what the first one speaks: the embedded broker knows 3.1.1 alone."""
        self._all = [Broker(url, MQTT5 if i else best, clock) for i, url in enumerate(urls)]
        self._at = 0

    @property
    def current(self) -> Broker:
        """The one to ask now."""
        return self._all[self._at]

    @property
    def preferred(self) -> Broker:
        """The first of them."""
        return self._all[0]

    @property
    def fallen_back(self) -> bool:
        """Whether the current one is not the preferred."""
        return self._at > 0

    def failed(self, fault: LinkError) -> bool:
        """The CONNECT failed; True: a round is over, and it is time to wait."""
        if self.current.failed(fault):
            return False
        self._next()
        return self._at == 0

    def lost(self, fault: LinkError, *, lasted: bool) -> None:
        """A connection ended that had been accepted."""
        self.current.served()
        self.current.fault = str(fault)
        if lasted:
            self._at = 0
        else:
            self._next()

    def prefer(self) -> None:
        """The preferred one answers again: on to it."""
        self.current.served()
        self._at = 0

    def _next(self) -> None:
        self._at = (self._at + 1) % len(self._all)
