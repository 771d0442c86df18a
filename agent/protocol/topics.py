"""The topics of one device, below `{prefix}/{device}/`."""


class Topics:
    """Names of the doors; `prefix` is the setting `link.topic_prefix`."""

    def __init__(self, prefix: str, device: str) -> None:
        self.root = f"{prefix}/{device}"
        self.presence = f"{self.root}/presence"
        self.heartbeat = f"{self.root}/heartbeat"
        self.ack = f"{self.root}/ack"
        self.ask = f"{self.root}/blob-ask"
        self.grant = f"{self.root}/blob-grant"
        self.cmd = f"{self.root}/cmd"
        self.result = f"{self.root}/result"
        self.desired = f"{self.root}/twin/desired"
        self.reported = f"{self.root}/twin/reported"
        self.content_ask = f"{self.root}/content-ask"
        self.content = f"{self.root}/content"

    def up(self, stream: str) -> str:
        """Where the batches of a stream go."""
        return f"{self.root}/up/{stream}"

    def blob(self, stream: str) -> str:
        """Where the pieces of a stream's blobs go."""
        return f"{self.root}/blob/{stream}"
