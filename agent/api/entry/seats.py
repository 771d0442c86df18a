"""The places of a door: one for each connection, and not all of them for one address.

Limits: an address that is not of this machine has all but one in STAYING; of IPv6, a network of 64
bits counts as one address, for whoever has one of it has all.
"""

import asyncio
import ipaddress
from collections import Counter

from agent.api.entry.traffic import Gate

STAYING = 4  # so that whoever holds all he can get does not keep the others out
NETWORK_BITS = 64
NEAR = ""  # a program on this machine: many of them are behind one address


class Seats:
    """Taken by address, as `address` says it, and given back by the same."""

    def __init__(self, most: int, gate: Gate) -> None:
        """`gate` counts who is connected, and who was turned away."""
        self.free = most
        self._address_max = max(1, most - most // STAYING)
        self._gate = gate
        self._taken = Counter[str]()

    def take(self, address: str) -> bool:
        """Whether there was one."""
        if self.free == 0 or self._taken[address] >= self._address_max:
            self._gate.turned_away += 1
            return False
        self.free -= 1
        if address != NEAR:
            self._taken[address] += 1
        self._gate.connected += 1
        return True

    def leave(self, address: str) -> None:
        """Give it back."""
        self.free += 1
        self._gate.connected -= 1
        if address != NEAR:
            self._taken[address] -= 1
            if not self._taken[address]:
                del self._taken[address]


def address(transport: asyncio.BaseTransport) -> str:
    """Whose connection it is, as far as places go."""
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):  # a unix socket, or gone already
        return NEAR
    try:
        found = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return NEAR
    found = getattr(found, "ipv4_mapped", None) or found
    if found.is_loopback:
        return NEAR
    if found.version == 4:
        return str(found)
    return str(ipaddress.ip_network((found, NETWORK_BITS), strict=False))
