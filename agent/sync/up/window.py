"""How many bytes may be with the connection and not answered by the broker: a bound that adjusts.

What is handed over lies in our send buffer, in the kernel's, or in a modem's queue before a thin
line, and a fresh alarm waits behind all of it. So as much may be out as the line delivers in one
round trip, which keeps it busy, and in `TARGET_S` beyond that, which is the queue an alarm finds:

    bound = rate * (smallest round trip + TARGET_S)

`rate` is measured at each answer: the bytes answered since that message went out, by the time this
took. While nothing queues, it is what we offered, not what the line could do: it can only raise
the estimate; and since the bound is above what is out in a round trip, we offer more each time
until a queue shows. A message that waited tells the line's true rate, up or down.

The smallest round trip is that of the last `SMALLEST_S`. Our own queue would hide it, so at the end
of that time the bound falls to half of what the line holds until one message has found it free.

The model of the path (rate times smallest round trip, both measured, a short drain to see the
latter) is that of BBR (draft-ietf-ccwg-bbr), its samples are those of "Delivery Rate Estimation"
(draft-cheng-iccrg-delivery-rate-estimation); the target delay above the smallest one is from
LEDBAT (RFC 6817), the first bound, ten segments, from RFC 6928.
"""

from collections.abc import Callable

from msgspec import Struct

TARGET_S = 0.5
FIRST_BYTES = 10 * 1460
FLOOR_BYTES = 4096
MESSAGE_BYTES_MIN = 2048  # of less most would be header
SMALLEST_S = 30.0
SHARE = 8  # a backlog message takes at most this part of the bound
RESERVE = 4  # live messages have this part of the bound for themselves, beyond the bound


class Flight(Struct):
    """A message with the connection: what was known when it went out."""

    size_bytes: int
    live: bool
    sent_at: float
    delivered_bytes: int  # answered until then
    delivered_at: float
    on_free_line: bool  # it went out while the queue was being let off


class Window:
    """Pure: `now` gives monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.in_flight_bytes = 0
        self._live_bytes = 0
        self._delivered_bytes = 0
        self._delivered_at = now()
        self._rates = [0.0, 0.0]  # the best of the last round trip and of this one, bytes a second
        self._round_ends = 0  # when so many bytes are delivered
        self._smallest_s: float | None = None
        self._smallest_at = 0.0
        self._draining = False

    @property
    def rate_bytes_per_s(self) -> float:
        """What the line delivers, as far as it was tried; 0: nothing is known yet."""
        return max(self._rates)

    @property
    def bound_bytes(self) -> int:
        """How much may be in flight."""
        if self._smallest_s is None:
            return FIRST_BYTES
        if self._draining:
            return max(FLOOR_BYTES, int(self.rate_bytes_per_s * self._smallest_s / 2))
        return max(FLOOR_BYTES, int(self.rate_bytes_per_s * (self._smallest_s + TARGET_S)))

    @property
    def message_bytes(self) -> int:
        """How large one message should be at most, for others to come between."""
        if self._smallest_s is None:
            return MESSAGE_BYTES_MIN
        whole_s = self._smallest_s + TARGET_S  # also while the bound is down
        return max(MESSAGE_BYTES_MIN, int(self.rate_bytes_per_s * whole_s) // SHARE)

    def has_room(self, size_bytes: int, *, live: bool) -> bool:
        """Whether a message of this size may go. One may always, be it larger than the bound."""
        if self.in_flight_bytes == 0 or self.in_flight_bytes + size_bytes <= self.bound_bytes:
            return True
        reserve = max(FLOOR_BYTES, self.bound_bytes // RESERVE)
        return live and (self._live_bytes == 0 or self._live_bytes + size_bytes <= reserve)

    def sent(self, size_bytes: int, *, live: bool) -> Flight:
        """A message goes out."""
        now = self._now()
        if self.in_flight_bytes == 0:
            self._delivered_at = now  # the line was idle until now
        before = self.in_flight_bytes
        free = self._draining and (before == 0 or before + size_bytes <= self.bound_bytes)
        self._look_for_smallest(now)
        flight = Flight(size_bytes, live, now, self._delivered_bytes, self._delivered_at, free)
        self.in_flight_bytes += size_bytes
        self._live_bytes += size_bytes if live else 0
        return flight

    def answered(self, flight: Flight) -> None:
        """The broker answered, whatever it said."""
        now = self._now()
        self.in_flight_bytes -= flight.size_bytes
        self._live_bytes -= flight.size_bytes if flight.live else 0
        self._delivered_bytes += flight.size_bytes
        round_trip_s = max(now - flight.sent_at, 1e-6)
        self._note_round_trip(flight, round_trip_s, now)
        self._note_rate(flight, round_trip_s, now)
        self._delivered_at = now

    def _look_for_smallest(self, now: float) -> None:
        if self._smallest_s is not None and now - self._smallest_at > SMALLEST_S:
            self._draining = True

    def _note_round_trip(self, flight: Flight, round_trip_s: float, now: float) -> None:
        if self._draining and flight.on_free_line:
            self._draining = False
        elif self._smallest_s is not None and round_trip_s > self._smallest_s:
            return
        self._smallest_s, self._smallest_at = round_trip_s, now

    def _note_rate(self, flight: Flight, round_trip_s: float, now: float) -> None:
        delivered = self._delivered_bytes - flight.delivered_bytes
        # Answers may come in heaps: what was delivered took the longer of the two.
        took_s = max(round_trip_s, now - flight.delivered_at)
        sample = delivered / took_s
        assert self._smallest_s is not None
        best = self.rate_bytes_per_s
        alone_s = flight.size_bytes / best if best else 0.0  # what the message itself takes
        waited_s = round_trip_s - self._smallest_s - alone_s
        if waited_s > 2 * TARGET_S:  # the line has become thinner: at once
            self._round_ends, self._rates = self._delivered_bytes, [sample, sample]
        elif flight.delivered_bytes >= self._round_ends:  # it went out in this round trip
            self._round_ends = self._delivered_bytes
            # Without a queue nothing shows that the line has become slower.
            self._rates = [self._rates[1] if waited_s > TARGET_S / 4 else best, sample]
        else:
            self._rates[1] = max(self._rates[1], sample)
