"""What keeps processes of models from being started at all, while there is a reason."""

import asyncio

from agent.errors import NotNow


class Hold:
    """Begins lifted."""

    def __init__(self) -> None:
        self.why = self.hint = ""
        self._lifted = asyncio.Event()
        self._lifted.set()

    @property
    def holds(self) -> bool:
        """Whether no process may be started."""
        return not self._lifted.is_set()

    def set(self, why: str, hint: str) -> None:
        """From now on none may be; `hint` is what to do about it."""
        self.why, self.hint = why, hint
        self._lifted.clear()

    def lift(self) -> None:
        """They may be."""
        self._lifted.set()

    async def over(self) -> None:
        """Wait until they may be."""
        await self._lifted.wait()

    def check(self) -> None:
        """Raises NotNow where none may be."""
        if self.holds:
            raise NotNow(f"no process is started: {self.why}", self.hint)
