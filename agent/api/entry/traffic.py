"""How much comes through the doors: counted here, shown by metrics/doors.py.

Limits: a Tally for each route and method that is served, one for all else (OTHER), and in each a
        number for each status that this agent answers with. Nothing that a caller says is kept.
"""

import asyncio
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from agent.api.form.route import Handler, Route
from agent.inference.domains.figures import SECONDS, Histogram

OTHER = "other"  # the route, and the method, of what no door is for
LEFT = 499  # the status of a request whose client did not wait for its answer, as nginx has it
WINDOW_S = 10
EVENTS, WEBSOCKET = "events", "websocket"
PLACES = "places"  # why a connection is turned away
REFUSED = {401: "auth", 403: "auth", 421: "name", 429: "rate"}  # why a request is, by its status
STREAM = web.RequestKey("stream", str)


class Tally:
    """The requests of one route and method."""

    __slots__ = ("seconds", "statuses")

    def __init__(self) -> None:
        self.statuses = defaultdict[int, int](int)
        self.seconds = Histogram(SECONDS)  # but for streams, which last as long as they are wanted

    def add(self, status: int, took_s: float) -> None:
        """A request has its answer. Ten thousand a second pass here: no call is made that need not
        be."""
        self.statuses[status] += 1
        seconds = self.seconds
        seconds.counts[bisect_left(SECONDS, took_s)] += 1
        seconds.sum += took_s


class Gate:
    """The connections of one door."""

    __slots__ = ("connected", "places", "received_bytes", "turned_away")

    def __init__(self, places: int) -> None:
        self.places = places
        self.connected = self.received_bytes = self.turned_away = 0


class Traffic:
    """All that is counted; `run` looks at it each second, for the rate."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        """`now_s` is a monotonic clock that is quick to read."""
        self.now_s = now_s
        self.tallies: dict[tuple[str, str], Tally] = {}
        self.gates: dict[str, Gate] = {}
        self.streams = {EVENTS: 0, WEBSOCKET: 0}
        self._refused = dict.fromkeys(sorted(set(REFUSED.values())), 0)
        self._routes: Mapping[Any, Route] = {}
        self._marks = deque[tuple[float, int]](maxlen=WINDOW_S + 1)  # when, how many until then

    def watch(self, app: web.Application, routes: Mapping[Any, Route]) -> None:
        """Count what `app` serves; `routes` by aiohttp's own."""
        self._routes = routes
        app.on_response_prepare.append(self._prepared)

    def gate(self, door: str, places: int) -> Gate:
        """For a door of this name, which the code gives, when it opens."""
        gate = self.gates.setdefault(door, Gate(places))
        gate.places = places
        return gate

    def tally(self, route: str, method: str) -> Tally:
        """For a route as it is written, and a method that it serves."""
        found = self.tallies.get((route, method))
        if found is None:
            found = self.tallies[route, method] = Tally()
        return found

    def refused(self) -> dict[str, int]:
        """Connections and requests that were refused, by reason."""
        return {PLACES: sum(gate.turned_away for gate in self.gates.values()), **self._refused}

    def per_second(self) -> float:
        """Requests that ended in a second, the mean of the last WINDOW_S, as `run` saw them."""
        if len(self._marks) < 2:
            return 0.0
        (began_s, before), (ended_s, after) = self._marks[0], self._marks[-1]
        return (after - before) / (ended_s - began_s)

    def mark(self) -> None:
        """A second is over."""
        count = sum(sum(one.statuses.values()) for one in self.tallies.values())
        self._marks.append((self.now_s(), count))

    async def run(self) -> None:
        """Mark each second, for ever."""
        while True:
            self.mark()
            await asyncio.sleep(1)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The outermost one: whatever becomes of a request, it is counted once."""
        route = self._routes.get(request.match_info.route)
        tally = self.tally(route.path, request.method) if route else self.tally(OTHER, OTHER)
        began_s, status = self.now_s(), LEFT
        try:
            answer = await handler(request)
            status = answer.status
            return answer
        finally:
            if reason := REFUSED.get(status):
                self._refused[reason] += 1
            if stream := request.get(STREAM):
                self.streams[stream] -= 1
                tally.statuses[status] += 1
            else:
                tally.add(status, self.now_s() - began_s)

    async def _prepared(self, request: web.Request, answer: web.StreamResponse) -> None:
        """An answer begins: one without an end is a stream."""
        if isinstance(answer, web.WebSocketResponse):
            request[STREAM] = WEBSOCKET
        elif answer.content_type == "text/event-stream":
            request[STREAM] = EVENTS
        else:
            return
        self.streams[request[STREAM]] += 1
