"""All that the device hears with: its sources, and a listener for each."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from agent import config
from agent.audio.listener import Listener
from agent.audio.live import Loop, Microphone
from agent.audio.recorder import Recorder
from agent.audio.recordings import File, Folder
from agent.audio.source import Source
from agent.clock import Clock
from agent.forms import Keep
from agent.health.conditions import Conditions
from agent.inference.speech import Speech
from agent.store.spool import Spool

log = logging.getLogger("heard")


class Ears:
    """The sources of the configuration, and those that left it while sound of theirs waited."""

    def __init__(
        self,
        settings: config.Audio,
        spool: Spool,
        speech: Speech,
        conditions: Conditions,
        clock: Clock,
    ) -> None:
        self.sources: list[Source] = []
        self.listeners: list[Listener] = []
        self.guests: list[Listener] = []  # of sources that come by the API
        self._settings = settings
        self._spool = spool
        self._speech = speech
        self._conditions = conditions
        self._clock = clock
        for source in settings.sources:
            self._add(source)

    def loops(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What has to run."""
        return [*(x.run for x in self.listeners), *(x.run for x in self.sources)]

    async def hear_former_sources(self) -> None:
        """What a source that left the configuration had accepted still becomes segments."""
        for name, keep in (await self._spool.sources()).items():
            if name not in self.configured:
                log.info("hearing what is left of %s, a source no longer configured", name)
                await self._spool.end_absent(name, ())
                self.listeners.append(self._listener(name, keep, asyncio.Event()))

    @property
    def configured(self) -> set[str]:
        """The names of the sources of the configuration."""
        return {source.name for source in self.sources}

    def host(self, name: str) -> tuple[Listener, bool]:
        """The listener of a source that is not configured; whether it is new, and has to be run."""
        for one in (*self.listeners, *self.guests):
            if one.source == name:
                return one, False
        self.guests.append(self._listener(name, "segments", asyncio.Event()))
        return self.guests[-1], True

    def leave(self, listener: Listener) -> None:
        """What `host` made is not needed any more."""
        self.guests.remove(listener)

    def recorder(self, listener: Listener) -> Recorder:
        """For the source that this one listens to."""
        parts = (self._spool, self._conditions, self._clock)
        return Recorder(listener.source, *parts, listener.arrived)

    def wake(self, source: str) -> bool:
        """Have a source's dead letters looked at; whether somebody listens to it."""
        all_listeners = (*self.listeners, *self.guests)
        listening = [one for one in all_listeners if one.source == source]
        for one in listening:
            one.wake()
        return bool(listening)

    def _listener(self, name: str, keep: Keep, arrived: asyncio.Event) -> Listener:
        rules = self._settings.segments
        parts = (self._spool, self._speech, self._conditions)
        return Listener(name, keep, rules, *parts, arrived)

    def _add(self, source: config.Source) -> None:
        """A source, its recorder and its listener, with the event between the two."""
        arrived = asyncio.Event()
        conditions, clock, chunk_s = self._conditions, self._clock, self._settings.chunk_s
        recorder = Recorder(source.name, self._spool, conditions, clock, arrived)
        self.listeners.append(self._listener(source.name, source.keep, arrived))
        match source:
            case config.File():
                self.sources.append(File(source, recorder, conditions))
            case config.Folder():
                self.sources.append(Folder(source, recorder, conditions))
            case config.Loop():
                self.sources.append(Loop(source, chunk_s, recorder, conditions, clock))
            case config.Microphone():
                self.sources.append(Microphone(source, chunk_s, recorder, conditions, clock))
