"""Why a connection could not be made, as far as what is tried next depends on it."""

from agent.errors import LinkError

PATIENCE = "nothing is lost: records wait in the store; check the network and link.broker_url"


class TooLarge(LinkError):
    """A message above the broker's limit or ours; it was not sent, the connection goes on."""


class Unspoken(LinkError):
    """No answer to CONNECT, as of a broker that does not know the protocol version, or is ill."""


class Refused(Unspoken):
    """The broker said that it does not speak this protocol version: another one may serve."""


class NoRetain(LinkError):
    """The broker keeps no retained messages, and refuses a last will that asks for it."""


class BadClientId(LinkError):
    """The broker answers, and does not want this client id."""


class Preferred(LinkError):
    """The preferred broker answers again; the connection to another one was ended for it."""
