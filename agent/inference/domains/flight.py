"""A batch on its way through one worker, and where the bodies of its calls and answers are.

Limits  : the arena's; bodies for which it has no room go through the socket.
"""

from msgspec import Raw

from agent.inference import wire
from agent.inference.arena import Arena
from agent.inference.domains.work import Work

ARENA_FROM_BYTES = 64 << 10  # smaller bodies go through the socket; bench/ipc.py


class Flight:
    """One batch under way."""

    __slots__ = ("cost_s", "places", "room", "works")

    def __init__(self, works: list[Work], cost_s: float) -> None:
        self.works = works
        self.cost_s = cost_s  # as estimated
        self.places: list[int] = []  # of the arena
        self.room = (0, 0)  # of the arena, for the answers: place and length


class Bodies:
    """What of one worker's calls and answers goes through its arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._row_bytes: dict[str, int] = {}  # of the largest answers lately, by model

    def placed(self, flight: Flight) -> tuple[list[wire.Call], list[wire.Buffer]]:
        """The calls of a batch, with large bodies put into the arena; and the other bodies."""
        calls, rest = list[wire.Call](), list[wire.Buffer]()
        for work in flight.works:
            at = self._place(work, flight)
            if at == wire.NOT_IN_ARENA:
                rest += work.body
            calls.append(wire.Call(work.id, work.head, work.size_bytes, work.deadline_s, at))
        expected = self._row_bytes.get(flight.works[0].model, 0)
        expected *= sum(work.rows for work in flight.works)
        if expected >= ARENA_FROM_BYTES:
            at_room = self._arena.take(expected)
            if at_room is not None:
                flight.places.append(at_room)
                flight.room = at_room, expected
        return calls, rest

    def answered(
        self, flight: Flight, answers: wire.Answers, body: memoryview
    ) -> list[tuple[Raw, memoryview]]:
        """Head and body of each answer; the flight's places are free again.

        Raises ValueError for answers that are not those to this batch.
        """
        body = self._checked(flight, answers, body)
        found, at = [], 0
        for answer in answers.answers:
            found.append((answer.head, body[at : at + answer.size_bytes]))
            at += answer.size_bytes
        for place in flight.places:
            self._arena.give(place)
        model, rows = flight.works[0].model, sum(work.rows for work in flight.works)
        self._row_bytes[model] = max(-(-at // max(1, rows)), self._row_bytes.get(model, 0) // 2)
        return found

    def _checked(self, flight: Flight, answers: wire.Answers, body: memoryview) -> memoryview:
        if len(answers.answers) != len(flight.works):
            raise ValueError(f"{len(answers.answers)} answers to {len(flight.works)} calls")
        if any(answer.size_bytes < 0 for answer in answers.answers):
            raise ValueError("an answer of less than no bytes")
        total = sum(answer.size_bytes for answer in answers.answers)
        if answers.at == wire.NOT_IN_ARENA:
            if len(body) != total:
                raise ValueError(f"{len(body)} bytes of answers, {total} announced")
            return body
        at, room = flight.room
        if answers.at != at or total > room:
            raise ValueError(f"answers at {answers.at} + {total}, their room is {at} + {room}")
        # Copied, for the place is given to the next call; the reader may take its time.
        return memoryview(bytes(self._arena.view[at : at + total]))

    def _place(self, work: Work, flight: Flight) -> int:
        """Put a large body into the arena; where it is."""
        if work.size_bytes < ARENA_FROM_BYTES:
            return wire.NOT_IN_ARENA
        at = self._arena.take(work.size_bytes)
        if at is None:
            return wire.NOT_IN_ARENA
        flight.places.append(at)
        end = at
        for piece in work.body:
            view = memoryview(piece).cast("B")
            self._arena.view[end : end + len(view)] = view
            end += len(view)
        return at
