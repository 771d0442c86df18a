"""The topics of one device, below `{prefix}/{device}/`."""


class Topics:
    """Names of the doors; `prefix` is the setting `link.topic_prefix`."""

    def __init__(self, prefix: str, device: str) -> None:
        root = f"{prefix}/{device}"
        self.presence = f"{root}/presence"
        self.heartbeat = f"{root}/heartbeat"
        self.ack = f"{root}/ack"
        self._up = f"{root}/up"
        self._blob = f"{root}/blob"

    def up(self, stream: str) -> str:
        """Where the batches of a stream go."""
        return f"{self._up}/{stream}"

    def blob(self, stream: str) -> str:
        """Where the pieces of a stream's blobs go."""
        return f"{self._blob}/{stream}"
