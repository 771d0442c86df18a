"""A domain's processes without limits."""


class Unconfined:
    """In the place of agent/confinement.py."""

    def environment(self) -> dict[str, str]:
        """Nothing is added."""
        return {}

    async def admit(self, pid: int) -> None:
        """Nothing holds it."""

    async def died(self) -> str:
        """Never of a limit."""
        return ""
