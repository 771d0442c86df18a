"""A pace that lets everything go, and a progress that counts."""


class Unpaced:
    """No rate, no hours, no quota."""

    message_bytes_max = 1 << 28

    async def take(self, size_bytes: int, *, live: bool) -> None:
        """It may go."""

    def allows(self, *, live: bool) -> bool:
        return True


class Unheard:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.sent_bytes = self.records = self.acknowledged_bytes = 0

    def sent(self, size_bytes: int) -> None:
        self.sent_bytes += size_bytes

    def acknowledged(self, records: int, size_bytes: int) -> None:
        self.records += records
        self.acknowledged_bytes += size_bytes
