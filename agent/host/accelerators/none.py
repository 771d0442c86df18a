"""A machine that computes on its CPU alone."""

from agent.host.accelerators.accelerator import Backend, Reading


class NoAccelerator:
    """Nothing to read."""

    backend: Backend = "none"

    def read(self) -> list[Reading]:
        """None."""
        return []
