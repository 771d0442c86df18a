"""Content of the fleet: where it comes from, and who may order it."""

from agent.commands.verbs.updates import UpdateVerbs
from agent.compose.core import Core
from agent.compose.link import LinkParts
from agent.protocol.topics import Topics
from agent.sync.content import ContentTalk
from agent.updates.content import Content


class UpdateParts:
    """The way of content, its talk over the link, and its verbs."""

    def __init__(self, core: Core, parts: LinkParts) -> None:
        link, updates = core.settings.link, core.settings.updates
        topics = Topics(link.topic_prefix, core.device)
        self.talk = ContentTalk(topics, link.payload_bytes_max, updates.stall_s)
        parts.join(self.talk)
        self.content = Content(
            *(updates, link, core.device, core.beside("updates"), core.known, self.talk.chunks)
        )
        self.verbs = UpdateVerbs(self.content, updates.check_s_max, updates.fetch_s_max)
