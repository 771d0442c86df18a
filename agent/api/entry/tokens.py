"""API tokens: what a program shows to be let in, over restarts.

A token is `hf_<id>_<secret>`: the id says which one it is, the secret is 256 random bits, shown
once, when the token is made. It holds the scopes it names and no other: `admin` does not imply
`read`. Neither network nor clock is needed to make, know or revoke one.

Limits  : TOKENS_MAX tokens; a file of FILE_BYTES_MAX; ASIDE_MAX damaged files are kept.
Format  : `tokens.json` beside the store (it outlasts a store that is put aside), mode 0600:
          {"format": 1, "tokens": [{"id", "name", "scopes", "created_us", "sha256"}]}. Of a secret
          only its SHA-256 is kept: so many random bits cannot be guessed from it. Replaced as a
          whole and fsynced, with its folder: a crash leaves what was there before, or after.
Recovery: without the file there are no tokens. With one that cannot be read, nobody is let in by a
          token, the condition `tokens_unreadable` says so, and the agent goes on; the file stays
          as it is until the next token is made, and is then kept as `tokens.json.damaged-N`.
          A revoked token is refused at once, also where that cannot be written; then the condition
          `tokens_unwritten` holds, and the next change or `revoke` writes it.
          A file that others on this machine may read or change is given its mode again, and the log
          says so; where that cannot be, the condition `tokens_exposed` holds until it is replaced.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from agent import plain_file
from agent.clock import Clock
from agent.errors import NotNow, NotThere, RequestError, StoreError
from agent.forms import SCOPES, Scope
from agent.health.conditions import Conditions

log = logging.getLogger("api")
TOKENS_MAX = 64  # a device has some programs and people, and a file of 64 is read in a millisecond
NAME_CHARS_MAX = 64
FILE_BYTES_MAX = 1 << 20
ASIDE_MAX = 9
ID_BYTES, SECRET_BYTES = 4, 32
FORM = re.compile(r"hf_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
NOBODYS = bytes(32)  # compared with where the id is unknown; no known text has this digest
SUBJECT = "tokens"
MODE, OTHERS = 0o600, 0o077
# What callers without a token are called (access.py), wherever somebody reads who it was.
RESERVED = frozenset({"nobody", "loopback", "unix socket", "unknown token"})


class Token(Struct, frozen=True):
    """One, without its secret; `created_us` is a wall label."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}$")]
    name: Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=len(SCOPES))]
    created_us: int
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class File(Struct, frozen=True):
    """The whole file."""

    format: Literal[1]
    tokens: list[Token]


class Tokens:
    """The tokens there are. Each of `changed` is called after every change of them."""

    def __init__(
        self,
        path: Path,
        conditions: Conditions,
        clock: Clock,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.changed: list[Callable[[], None]] = []
        self._path = path
        self._conditions = conditions
        self._clock = clock
        self._random = random
        self._one_at_a_time = asyncio.Lock()
        self._damaged = False  # what lies there is not ours to overwrite
        self._unwritten: dict[str, Token] = {}  # that were revoked, and the file still knows
        self._held: dict[str, Token] = {token.id: token for token in self._read()}

    @property
    def any(self) -> bool:
        """Whether somebody may come with a token."""
        return bool(self._held)

    def all(self) -> list[Token]:
        """The tokens, in the order they were made."""
        return list(self._held.values())

    def get(self, id: str) -> Token | None:
        """One by its id; None: it was revoked, or never there."""
        return self._held.get(id)

    def shown(self, text: str) -> Token | None:
        """Which token somebody shows. It takes the same time however near a wrong one is."""
        match = FORM.fullmatch(text)
        token = self._held.get(match[1]) if match else None
        known = bytes.fromhex(token.sha256) if token else NOBODYS
        right = hmac.compare_digest(_digest(match[2] if match else text), known)
        return token if right else None

    async def create(self, name: str, scopes: Collection[Scope]) -> tuple[Token, str]:
        """Make one: what is kept of it, and its text, which is known to nobody else from now on.

        Raises RequestError for a name that cannot be shown or is reserved, NotNow where it is taken
        or there are too many, StoreError where it cannot be kept.
        """
        async with self._one_at_a_time:
            self._check(name)
            id, secret = self._fresh_id(), _text(self._random(SECRET_BYTES))
            held = [scope for scope in SCOPES if scope in scopes]
            created_us = int(self._clock.wall() * 1e6)
            token = Token(id, name, held, created_us, _digest(secret).hex())
            try:
                await self._keep({**self._held, id: token})
            except OSError as error:
                raise StoreError(
                    f"no token was made: {self._unkept(error)}", "mend that, and try again"
                ) from error
            self._held[id] = token
        self._tell()
        return token, f"hf_{id}_{secret}"

    async def place(self, id: str, name: str, scopes: Collection[Scope], sha256: str) -> Token:
        """Let in whoever shows the token of this id whose secret has this digest; one of the same
        name goes. Raises as `create`, and NotNow where the id is that of another.
        """
        async with self._one_at_a_time:
            rest = {one.id: one for one in self._held.values() if one.name != name}
            if id in rest:
                raise NotNow(f"{id} is the id of another token", "make one with another id")
            former = next((one for one in self._held.values() if one.name == name), None)
            self._check(name, replaces=former is not None)
            held = [scope for scope in SCOPES if scope in scopes]
            token = Token(id, name, held, int(self._clock.wall() * 1e6), sha256)
            if former and (former.id, former.scopes, former.sha256) == (id, held, sha256):
                return former  # it is there already
            try:
                await self._keep({**rest, id: token})
            except OSError as error:
                raise StoreError(
                    f"the token is not let in: {self._unkept(error)}", "mend that, and try again"
                ) from error
            self._held = {**rest, id: token}
        self._tell()
        return token

    async def revoke(self, id: str) -> Token:
        """From now on it lets nobody in.

        Raises NotThere, and StoreError where it would come back at the next start; it may be
        revoked again then.
        """
        token = self._held.pop(id, None) or self._unwritten.get(id)
        if token is None:
            raise NotThere(f"no token {id[:80]!r}", "see holdfast tokens ls")
        self._unwritten[id] = token
        self._tell()  # before all else: what was lost must not wait for a slow disk
        async with self._one_at_a_time:
            try:
                await self._keep(dict(self._held))  # others may be revoked meanwhile
            except OSError as error:
                cause, remedy = self._unkept(error), "mend that, then revoke it again"
                self._conditions.hold(
                    *("tokens_unwritten", SUBJECT, "critical"),
                    f"{cause}; a restart would bring back {', '.join(self._unwritten)}",
                    f"{remedy}: holdfast tokens revoke {id}",
                )
                raise StoreError(f"it is refused until a restart: {cause}", remedy) from error
        return token

    def _tell(self) -> None:
        for callback in self.changed:
            callback()

    def _check(self, name: str, *, replaces: bool = False) -> None:
        if not name.isprintable() or name != name.strip() or not 0 < len(name) <= NAME_CHARS_MAX:
            raise RequestError(
                f"name: expected 1 to {NAME_CHARS_MAX} printable characters, found {name[:80]!r}",
                "name the program or person that will use the token",
            )
        if name.casefold() in RESERVED:
            raise RequestError(
                f"name: {name!r} is what those who come without a token are called",
                "name the program or person that will use the token",
            )
        if not replaces and any(token.name == name for token in self._held.values()):
            raise NotNow(
                f"there is a token {name!r} already", "choose another name, or revoke that one"
            )
        if not replaces and len(self._held) >= TOKENS_MAX:
            raise NotNow(f"there are {TOKENS_MAX} tokens already", "revoke one that is not used")

    def _fresh_id(self) -> str:
        while (id := self._random(ID_BYTES).hex()) in self._held:
            pass
        return id

    async def _keep(self, held: dict[str, Token]) -> None:
        """Raises OSError."""
        content = msgspec.json.encode(File(1, list(held.values())))
        if self._damaged:
            await asyncio.to_thread(_put_aside, self._path)
            self._damaged = False
            self._conditions.clear("tokens_unreadable", SUBJECT)
        await asyncio.to_thread(_write, self._path, msgspec.json.format(content) + b"\n")
        self._conditions.clear("tokens_exposed", SUBJECT)
        self._unwritten = {id: one for id, one in self._unwritten.items() if id in held}
        if not self._unwritten:
            self._conditions.clear("tokens_unwritten", SUBJECT)

    def _unkept(self, error: OSError) -> str:
        return f"{self._path} cannot be written: {error.strerror}"

    def _read(self) -> list[Token]:
        try:
            with plain_file.opened(self._path) as file:
                self._shut(file.fileno())
                content = file.read(FILE_BYTES_MAX + 1)
            if len(content) > FILE_BYTES_MAX:
                raise msgspec.DecodeError(f"it has more than {FILE_BYTES_MAX} bytes")
            return msgspec.json.decode(content, type=File).tokens
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._damaged = True
            said = error.strerror if isinstance(error, OSError) else str(error)
            self._conditions.hold(
                *("tokens_unreadable", SUBJECT, "warning"),
                f"{self._path}: {said}; nobody is let in by a token",
                "put a good copy there and restart, or make new ones: holdfast tokens create",
            )
            return []

    def _shut(self, handle: int) -> None:
        """See that nobody else reads or changes the file, and say so where somebody could."""
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        if not mode & OTHERS:
            return
        found = f"{self._path} had the mode {mode:04o}: others on this machine could get at it"
        try:
            os.fchmod(handle, MODE)
        except OSError as error:
            self._conditions.hold(
                "tokens_exposed",
                SUBJECT,
                "warning",
                f"{found}, and still can: it cannot be changed: {error.strerror}",
                f"chmod 600 {self._path}, as its owner, then look through holdfast tokens ls, "
                "revoke what nobody here made, and restart",
            )
        else:
            said = "look through holdfast tokens ls, and revoke what nobody here made"
            log.warning("%s; it is 0600 now; %s", found, said)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def _text(secret: bytes) -> str:
    return base64.urlsafe_b64encode(secret).rstrip(b"=").decode()


def _write(path: Path, content: bytes) -> None:
    """Replace the file as a whole. Raises OSError; then the former one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)  # of a crash; opened anew, it has the mode that is meant
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _sync_folder(path.parent)


def _put_aside(path: Path) -> None:
    names = (path.with_name(f"{path.name}.damaged-{n}") for n in range(1, ASIDE_MAX + 1))
    free = next((name for name in names if not os.path.lexists(name)), None)
    if free is None:
        raise OSError(0, f"{ASIDE_MAX} damaged ones lie beside it already: take them away")
    os.rename(path, free)  # noqa: PTH104  a link is put aside itself
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
