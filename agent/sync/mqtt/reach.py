"""To one of a broker's addresses: a name may have many, and all of them together have a bound.

They are tried in the order in which the system gives them, each for an equal share of the time that
is left; what comes after them (TLS) has a share too. So a network that drops all packets to one of
them keeps nobody from the next. It blocks, and how long the system takes for a name has no bound.
"""

import socket
import ssl
from collections.abc import Callable

import paho.mqtt.client as mqtt

from agent.clock import Clock
from agent.errors import LinkError


def reached(host: str, port: int, until_s: float, clock: Clock) -> socket.socket:
    """A connection to one of the name's addresses, before `until_s` (monotonic). Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    last = OSError("it has no address")
    for tried, (family, kind, protocol, _, address) in enumerate(found):
        left_s = until_s - clock.monotonic()
        if left_s <= 0:  # whoever asked does not wait any more
            raise TimeoutError("no time is left")
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a kernel without that family
            last = error
            continue
        try:
            sock.settimeout(left_s / (len(found) - tried + 1))
            sock.connect(address)
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    if len(found) > 1:
        raise OSError(f"none of its {len(found)} addresses answers, the last one: {last}")
    raise last


class Client(mqtt.Client):
    """paho, whose own way to a broker takes as long as the broker has addresses."""

    until_s: float  # of the clock: when TCP and TLS have to be done
    clock: Clock
    on_encrypted: Callable[[ssl.SSLSocket], None]  # before a word is said; it may raise LinkError

    def _create_socket_connection(self) -> socket.socket:
        sock = reached(self._host, self._port, self.until_s, self.clock)
        left_s = self.until_s - self.clock.monotonic()
        self._connect_timeout = max(left_s, 0.01)  # TLS's; its setter wants no call under way
        return sock

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        sock = super()._ssl_wrap_socket(tcp_sock)
        try:
            self.on_encrypted(sock)
        except LinkError:
            sock.close()
            raise
        return sock
