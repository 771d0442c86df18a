"""The section `api`: the local doors."""

from typing import Annotated

from msgspec import Meta, field

from agent.forms import Address, Port, Scope
from agent.sections.part import Part


class Tls(Part, frozen=True, kw_only=True):
    """A certificate (PEM, with those between it and its root) and its key, which has no password.

    When the files change they are taken anew, open connections go on.
    """

    certificate_file: str
    key_file: str


class Api(Part, frozen=True):
    """The local doors. `hosts` are further names a client may put in `Host`, without port.

    `host` is the address the TCP port listens on; `0.0.0.0` (IPv4) and `::` (IPv6) are all of this
    machine. Beyond the loopback it listens only while there are a certificate in `tls` and a token;
    with `without_tls` tokens go over the network in the clear. At most `connections_max` are open.

    The unix socket is for this user and `group` (none: the group of the process).

    `loopback_scopes` are what a program on this machine may do over TCP without a token.
    `rate_per_s_max` is how many requests each token may send in a second, and each address without
    one, after a rest as many at once; null: any. It does not hold on this machine without a token.
    """

    host: Address = "127.0.0.1"
    port: Port = 8080
    tls: Tls | None = None
    without_tls: bool = False
    connections_max: Annotated[int, Meta(ge=4, le=65_536)] = 128
    socket: str = "var/holdfast.sock"
    group: str | None = None
    hosts: list[str] = field(default_factory=list)
    loopback_scopes: list[Scope] = field(default_factory=lambda: ["read", "infer"])
    rate_per_s_max: Annotated[float, Meta(ge=1, le=1_000_000)] | None = 1000.0
