"""Content for this device: looked up, judged, fetched, and handed to whoever installs it.

updates/trust/     what is believed (trust.py, checker.py)
updates/staged/    what is being fetched, and what was (staging.py)
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.config import Link
from agent.config import Updates as Settings
from agent.known_time import KnownTime
from agent.protocol.content import TARGET, TARGETS, About, Kind
from agent.threads import apart
from agent.updates.checking import Target
from agent.updates.chunks import Chunks
from agent.updates.download import Download
from agent.updates.fetched import Fetched, NotFetched, Told, disk_fault
from agent.updates.folder import FolderSource
from agent.updates.http import HttpSource
from agent.updates.source import Absent, Away, Source, foreign
from agent.updates.staging import Staging
from agent.updates.trust import Believed, Trust

MQTT = "mqtt:"
OFFERS_BYTES_MAX = 192 << 10  # of what becomes a command's result
_NOBODY = ("expired", "bad_signature", "rollback", "mix_and_match")  # weighs more than silence


class Offer(Struct, frozen=True, kw_only=True):
    """A target that is there for this device."""

    target: str
    kind: Kind
    name: str
    version: str
    size_bytes: int
    digest: str


class Offers(Struct, frozen=True, kw_only=True):
    """What a check found: the source that answered, versions and expiry of the metadata's roles,
    whether expiry could be judged by a trusted clock, and what there is. `others` are targets for
    other devices, or in a form that this agent does not know; `unlisted` those that found no
    room here; they can be fetched all the same."""

    source: str
    versions: dict[str, int]
    expires: dict[str, str]
    expiry_judged: bool
    offers: list[Offer]
    others: int
    unlisted: int


class Content:
    """The way of content into this device; one call works, others wait for it."""

    def __init__(
        self,
        settings: Settings,
        link: Link,
        device: str,
        folder: Path,
        known: KnownTime,
        chunks: Chunks | None = None,
    ) -> None:
        """`folder` is its own, beside the store; `chunks` is the way by the broker, if any."""
        self._settings = settings
        self._link = link
        self._names = {device, *settings.tags}
        self._knows_time: Callable[[], bool] = lambda: known.sure
        self._chunks = chunks
        self._trust = Trust(settings, folder / "trust", known)
        self._staging = Staging(
            folder / "staged", settings.staging_bytes_max, settings.free_bytes_min
        )
        self._turn = asyncio.Lock()

    def foreign(self, source: str) -> str:
        """The source, where it is none of those that are configured; else ''."""
        return foreign(source, self._settings.urls)

    async def check(self, source: str = "") -> Offers:
        """What there is for this device. Raises NotFetched."""
        async with self._turn:
            believed = await self._believed(source, lists=True)
        offers, found, told_bytes = [], believed.checked.targets, 0
        for one in found:
            with contextlib.suppress(NotFetched):
                offer = self._offer(one)
                told_bytes += len(msgspec.json.encode(offer))
                offers.append(offer)
        unlisted = believed.checked.unlisted
        while told_bytes > OFFERS_BYTES_MAX:
            told_bytes -= len(msgspec.json.encode(offers.pop()))
            unlisted += 1
        return Offers(
            source=believed.source,
            versions=believed.checked.versions,
            expires=believed.checked.expires,
            expiry_judged=believed.by.judged,
            offers=offers,
            others=len(found) + believed.checked.unlisted - len(offers) - unlisted,
            unlisted=unlisted,
        )

    async def fetch(self, target: str, told: Told, source: str = "") -> Fetched:
        """As Fetcher has it (fetched.py)."""
        if not TARGET.fullmatch(target):
            raise NotFetched(
                "no_target", f"{target[:200]!r} is no target's path", "see updates.check"
            )
        limit_s = self._settings.fetch_s_max
        async with self._turn:
            try:
                async with asyncio.timeout(limit_s):
                    return await self._fetched(target, told, source)
            except TimeoutError as error:
                raise NotFetched(
                    "too_slow",
                    f"{target}: not here within {limit_s:g} s; what has come is kept",
                    "order it again: it goes on from there",
                ) from error
            except OSError as error:
                raise disk_fault(error, target) from error

    async def drop(self, fetched: Fetched) -> None:
        """As Fetcher has it."""
        await apart(lambda: self._staging.drop(fetched.digest))

    async def _fetched(self, target: str, told: Told, source: str) -> Fetched:
        believed = await self._believed(source, target)
        found = believed.checked.targets[0]
        about = self._for_us(found)
        path = await apart(lambda: self._staging.whole(found.sha256))
        if path is None:
            path = await self._brought(found, about, told, source, believed.source)
        return Fetched(
            kind=about.kind,
            name=about.name,
            version=about.version,
            target=target,
            path=str(path),
            digest=found.sha256,
            size_bytes=found.size_bytes,
            custom=found.custom,
            expiry_judged=believed.by.judged,
        )

    async def _brought(
        self, found: Target, about: About, told: Told, source: str, first: str
    ) -> Path:
        """The file; from the source that told of it, or from another one that has it."""
        folder, _, name = found.path.rpartition("/")
        path = "/".join(filter(None, (TARGETS, folder, f"{found.sha256}.{name}")))
        part = await apart(
            lambda: self._staging.begin(found.sha256, found.size_bytes, about.min_free_bytes)
        )
        fault: Exception | None = None
        with contextlib.ExitStack() as left:
            await apart(lambda: left.enter_context(part))
            work = Download(self._settings, part, path, found.size_bytes, found.sha256, told)
            for one in sorted(self._sources(source), key=lambda one: one.name != first):
                try:
                    async with one:
                        return await work.whole(one)
                except (Absent, Away) as error:
                    hint = error.hint or "copy all of the repository to it, `targets` too"
                    fault = fault or NotFetched("unreachable", str(error), hint)
                except NotFetched as error:
                    if error.reason == "no_space":
                        raise
                    fault = fault or error
        assert fault, "there is a source, or nothing would be believed"
        raise fault

    async def _believed(self, source: str, target: str = "", *, lists: bool = False) -> Believed:
        """Of the first source that is there, and may be believed. Raises NotFetched."""
        faults: list[NotFetched] = []
        for one in self._sources(source):
            try:
                async with one:
                    return await self._trust.check(one, target, lists=lists)
            except Away as error:
                faults.append(NotFetched("unreachable", str(error), error.hint))
            except NotFetched as error:
                faults.append(error)
        if not faults:
            raise NotFetched("not_set_up", "updates.urls names no source", "name one, or a stick")
        raise next((one for one in faults if one.reason in _NOBODY), faults[0])

    def _sources(self, named: str) -> list[Source]:
        return [self._source(one) for one in ([named] if named else self._settings.urls)]

    def _source(self, url: str) -> Source:
        if url.startswith("/") or url.startswith("file://"):
            return FolderSource(Path(url.removeprefix("file://")))
        if url != MQTT:
            return HttpSource(url, self._link, self._settings.stall_s, self._knows_time)
        if self._chunks is None:
            raise NotFetched("not_set_up", "mqtt: there is no link here", "name another source")
        return self._chunks

    def _offer(self, found: Target) -> Offer:
        """As it is told. Raises NotFetched."""
        about = self._for_us(found)
        return Offer(
            target=found.path,
            kind=about.kind,
            name=about.name,
            version=about.version,
            size_bytes=found.size_bytes,
            digest=found.sha256,
        )

    def _for_us(self, found: Target) -> About:
        """What is signed of it. Raises NotFetched."""
        try:
            about = msgspec.convert(found.custom, About)
        except msgspec.ValidationError as error:
            raise NotFetched(
                "unreadable",
                f"{found.path}: what is signed with it: {error}",
                "publish it with holdfast-fleet updates add",
            ) from error
        if not found.sha256:
            raise NotFetched(
                "unreadable", f"{found.path}: is signed without a SHA-256", "publish it anew"
            )
        if about.tags and not self._names.intersection(about.tags):
            raise NotFetched(
                "other_device",
                f"{found.path} is for {', '.join(about.tags[:8])}, and this is none of them",
                "order what is for this device, or set updates.tags",
            )
        return about
