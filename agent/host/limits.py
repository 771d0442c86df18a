"""What the children of a domain may take of the machine."""

from typing import Literal

from msgspec import Struct

Class = Literal["realtime", "interactive", "batch"]


class Limits(Struct, frozen=True):
    """Of one domain; None is no limit.

    `cpus` are the processors its children run on. `cpu_share` is a weight: of the machine's time,
    when all want it; None goes by class, and leaves `batch` what nobody else wants. A batch domain
    with a share has it at the cost of realtime work. `memory_bytes_max` is for each child.
    """

    cpus: tuple[int, ...] | None = None
    cpu_share: float | None = None
    memory_bytes_max: int | None = None
    klass: Class = "interactive"

    @property
    def weight(self) -> float:
        """Of its processor time, where an ordinary process has 1."""
        return _WEIGHTS[self.klass] if self.cpu_share is None else self.cpu_share

    @property
    def idle(self) -> bool:
        """Whether it runs only when nobody else wants to, or nearly: it never waits for ever."""
        return self.klass == "batch" and self.cpu_share is None


# Interactive weighs what nice 5 does; batch next to nothing, where the kernel has no idle groups.
_WEIGHTS: dict[Class, float] = {"realtime": 1.0, "interactive": 0.33, "batch": 0.01}
