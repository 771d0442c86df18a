"""From when to when the broker's certificates hold, while no clock says what time it is.

With a clock that nobody has set, OpenSSL would find each certificate expired, or not valid yet, and
a boot in 1970 would cut the device off. So then it verifies the chain and the name, and leaves out
the dates (X509_V_FLAG_NO_CHECK_TIME); those are judged here, by the least that is known of the time
(agent/known_time.py): what has certainly expired is refused. Once the clock is synchronised, they
are judged by it, also those of a connection that is up.
"""

import asyncio
import ssl
from typing import Any

from msgspec import Struct

from agent.errors import LinkError
from agent.known_time import KnownTime, day

NO_CHECK_TIME = 0x200000  # openssl/x509_vfy.h, since 1.1.0
LOOK_S = 1.0


class Dates(Struct, frozen=True):
    """All certificates of a chain are valid between these two, in seconds since 1970."""

    begins_s: float
    ends_s: float


def leave_out(context: ssl.SSLContext) -> None:
    """Have the context verify all but the dates."""
    context.verify_flags |= NO_CHECK_TIME


def of(sock: ssl.SSLSocket) -> Dates:
    """Those of the chain that was verified, the authority's own included."""
    # SSLSocket shows it from Python 3.13 on; the object below it has had it since 3.10.
    below: Any = sock._sslobj  # type: ignore[attr-defined]
    chain = [one.get_info() for one in below.get_verified_chain()]
    return Dates(
        max(ssl.cert_time_to_seconds(one["notBefore"]) for one in chain),
        min(ssl.cert_time_to_seconds(one["notAfter"]) for one in chain),
    )


def judge(dates: Dates, known: KnownTime) -> None:
    """Raises LinkError for what has expired, and, by a clock that is believed, for what is not
    valid yet."""
    now_s = known.least_s()
    if now_s > dates.ends_s:
        raise LinkError(
            f"the broker's certificate, or that of its authority, has expired on "
            f"{day(dates.ends_s)}; the time is {known.said()}",
            "renew it; or synchronise the clock, if that is not so",
        )
    if now_s < dates.begins_s and known.sure:
        raise LinkError(
            f"the broker's certificate, or that of its authority, is valid only from "
            f"{day(dates.begins_s)} on; the time is {known.said()}",
            "renew it, or correct the time server that this machine believes",
        )


async def judged(dates: Dates, known: KnownTime) -> None:
    """Wait until the clock is synchronised, and judge. Raises as `judge` does."""
    while True:
        await asyncio.sleep(LOOK_S)
        if known.sure:
            return judge(dates, known)
