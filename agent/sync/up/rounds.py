"""Whether loops come round, of which each has a bound for it: once all have, that is a round."""


class Rounds:
    """Of these loops, by their names."""

    def __init__(self, *loops: str) -> None:
        self.count = 0
        self._loops = frozenset(loops)
        self._out = set(loops)

    def came(self, loop: str) -> None:
        """This one is at its beginning again."""
        self._out.discard(loop)
        if not self._out:
            self.count += 1
            self._out.update(self._loops)
