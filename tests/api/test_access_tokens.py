"""API tokens: shown once, kept hashed, known after a restart, gone when they are taken back."""

import asyncio
import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from agent.api.entry import access
from agent.api.entry import tokens as module
from agent.api.entry.sessions import LIFE_S
from agent.api.entry.tokens import ASIDE_MAX, FORM, RESERVED, TOKENS_MAX, Tokens
from agent.api.form.route import Route, get
from agent.api.routes.tokens import TOKENS
from agent.clock import Clock
from agent.errors import NotNow, NotThere, RequestError, StoreError
from agent.health.conditions import Conditions
from tests.api.entrance import Entrance, Still, bearer, is_a_refusal
from tests.outside import DEADLINE_S

STATUS = "/api/v1/status"


def opened(folder: Path, clock: Clock | None = None) -> tuple[Tokens, Conditions]:
    """As after a start of the agent."""
    conditions = Conditions(clock or Clock())
    return Tokens(folder / "tokens.json", conditions, clock or Clock()), conditions


def named(conditions: Conditions) -> list[str]:
    return [one.name for one in conditions.all()]


async def test_a_token_outlasts_a_restart_and_its_secret_is_nowhere(tmp_path: Path) -> None:
    tokens, _ = opened(tmp_path)
    assert not tokens.any
    made, text = await tokens.create("line 4, \N{CJK UNIFIED IDEOGRAPH-4E2D}", ["infer", "read"])
    assert FORM.fullmatch(text)
    again, conditions = opened(tmp_path)
    assert again.any
    assert again.shown(text) == made
    assert made.scopes == ["read", "infer"]
    kept = (tmp_path / "tokens.json").read_bytes()
    assert text[12:].encode() not in kept
    assert hashlib.sha256(text[12:].encode()).hexdigest().encode() in kept
    assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["tokens.json"]
    assert named(conditions) == []


async def test_secrets_differ_and_only_the_very_text_is_known(tmp_path: Path) -> None:
    tokens, _ = opened(tmp_path)
    texts = [(await tokens.create(f"{n}", ["read"]))[1] for n in range(20)]
    assert len({text[12:] for text in texts}) == len({text[:11] for text in texts}) == 20
    for text in texts:
        assert tokens.shown(text)
        changed = {text[:-1], text + "A", text.upper(), f" {text}", texts[0][:12] + text[12:]}
        changed |= {text[:at] + ("B" if text[at] == "A" else "A") + text[at + 1 :] for at in (0, 5)}
        changed |= {
            text[:at] + ("B" if text[at] == "A" else "A") + text[at + 1 :] for at in (12, 54)
        }
        for wrong in changed - {texts[0]}:
            assert tokens.shown(wrong) is None, wrong


@pytest.mark.parametrize("text", ["", "hf_", "\udcff", "hf_00000000_" + "A" * 43, "x" * 10_000])
async def test_an_unknown_one_is_compared_too(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, _ = opened(tmp_path)
    await tokens.create("one", ["read"])
    seen: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    assert tokens.shown(text) is None
    assert seen == [(32, 32)]


async def test_a_revoked_one_is_gone_for_good(tmp_path: Path) -> None:
    tokens, _ = opened(tmp_path)
    told: list[bool] = []
    tokens.changed.append(lambda: told.append(tokens.any))
    token, text = await tokens.create("one", ["admin"])
    assert (await tokens.revoke(token.id)) == token
    assert told == [True, False]
    assert tokens.shown(text) is None
    assert opened(tmp_path)[0].all() == []
    with pytest.raises(NotThere):
        await tokens.revoke(token.id)


@pytest.mark.parametrize("name", ["", " a", "a\n", "a\x1b[2J", "x" * 65, "\u202e"])
async def test_a_name_that_cannot_be_shown_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="name"):
        await opened(tmp_path)[0].create(name, ["read"])


@pytest.mark.parametrize("name", ["nobody", "loopback", "Unix Socket", "unknown token"])
async def test_a_name_of_who_comes_without_a_token_is_reserved(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="without a token") as refused:
        await opened(tmp_path)[0].create(name, ["read"])
    assert refused.value.hint


def test_all_who_come_without_a_token_have_a_name_that_is_reserved() -> None:
    own = {one.name for one in vars(access).values() if isinstance(one, access.Caller)}
    assert own | {access.Access([])._loopback.name} == RESERVED


async def test_there_are_so_many_tokens_and_no_two_of_a_name(tmp_path: Path) -> None:
    tokens, _ = opened(tmp_path)
    for n in range(TOKENS_MAX):
        await tokens.create(f"{n}", ["read"])
    with pytest.raises(NotNow, match=f"{TOKENS_MAX} tokens"):
        await tokens.create("one more", ["read"])
    await tokens.revoke(tokens.all()[0].id)
    with pytest.raises(NotNow, match="'1' already"):
        await tokens.create("1", ["read"])
    await tokens.create("one more", ["read"])
    assert len(opened(tmp_path)[0].all()) == TOKENS_MAX


GOOD = {"id": "0" * 8, "name": "x", "scopes": ["read"], "created_us": 0, "sha256": "0" * 64}
DAMAGES = {
    "empty": b"",
    "cut off": b'{"format": 1, "tok',
    "no text": b"\xff\xfe\x00",
    "another thing": b"[]",
    "another format": b'{"format": 2, "tokens": []}',
    "a deep one": b"[" * 100_000,
    "a long one": b" " * (1 << 20) + b'{"format": 1, "tokens": []}',
    **{
        f"a wrong {key}": msgspec.json.encode({"format": 1, "tokens": [{**GOOD, key: value}]})
        for key, value in {"id": "x", "scopes": ["root"], "sha256": "00", "name": 5}.items()
    },
    "no scopes": msgspec.json.encode({"format": 1, "tokens": [{**GOOD, "scopes": []}]}),
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_file_lets_nobody_in_is_told_and_is_kept(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    for _ in range(2):  # and so after a restart
        tokens, conditions = opened(tmp_path)
        assert not tokens.any
        assert named(conditions) == ["tokens_unreadable"]
        assert str(path) in conditions.all()[0].cause
        assert path.read_bytes() == content
    _, text = await tokens.create("one", ["read"])
    assert tokens.shown(text)
    assert named(conditions) == []
    assert (tmp_path / "tokens.json.damaged-1").read_bytes() == content
    assert opened(tmp_path)[0].shown(text)


async def test_a_link_or_a_folder_in_its_place_is_not_followed(tmp_path: Path) -> None:
    tokens, _ = opened(tmp_path)
    _, text = await tokens.create("one", ["read"])
    (tmp_path / "tokens.json").rename(tmp_path / "elsewhere")
    (tmp_path / "tokens.json").symlink_to(tmp_path / "elsewhere")
    tokens, conditions = opened(tmp_path)
    assert tokens.shown(text) is None
    assert "a link" in conditions.all()[0].cause
    await tokens.create("two", ["read"])
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o666, 0o640, 0o602, 0o601])
async def test_a_file_that_others_could_get_at_is_shut_and_said(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    tokens, _ = opened(tmp_path)
    _, text = await tokens.create("one", ["read"])
    path = tmp_path / "tokens.json"
    path.chmod(mode)
    tokens, conditions = opened(tmp_path)
    assert tokens.shown(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (said,) = caplog.messages
    assert f"had the mode {mode:04o}" in said
    assert "holdfast tokens ls" in said
    assert named(conditions) == []
    opened(tmp_path)
    assert len(caplog.messages) == 1, "once"


async def test_a_file_that_cannot_be_shut_is_said_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, _ = opened(tmp_path)
    _, text = await tokens.create("one", ["read"])
    path = tmp_path / "tokens.json"
    path.chmod(0o644)

    def refused(*_: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(module.os, "fchmod", refused)
    tokens, conditions = opened(tmp_path)
    assert tokens.shown(text)
    (told,) = conditions.all()
    assert (told.name, told.severity) == ("tokens_exposed", "warning")
    assert "0644" in told.cause
    assert f"chmod 600 {path}" in told.remedy
    await tokens.create("two", ["read"])
    assert (named(conditions), stat.S_IMODE(path.stat().st_mode)) == ([], 0o600)


async def test_damaged_files_are_kept_in_bounds(tmp_path: Path) -> None:
    for n in range(1, ASIDE_MAX + 1):
        (tmp_path / f"tokens.json.damaged-{n}").touch()
    (tmp_path / "tokens.json").write_bytes(b"x")
    tokens, conditions = opened(tmp_path)
    with pytest.raises(StoreError, match="take them away"):
        await tokens.create("one", ["read"])
    assert (tmp_path / "tokens.json").read_bytes() == b"x"
    assert (tokens.any, named(conditions)) == (False, ["tokens_unreadable"])


async def test_a_full_disk_makes_no_token_and_revokes_one_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, conditions = opened(tmp_path)
    token, text = await tokens.create("one", ["read"])
    other, _ = await tokens.create("two", ["read"])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(module.os, "fsync", full)
        with pytest.raises(StoreError, match=r"no token was made.*No space"):
            await tokens.create("three", ["read"])
        assert [one.name for one in tokens.all()] == ["one", "two"]
        assert named(conditions) == []
        with pytest.raises(StoreError, match="refused until a restart"):
            await tokens.revoke(token.id)
        assert tokens.shown(text) is None
        assert named(conditions) == ["tokens_unwritten"]
        assert token.id in conditions.all()[0].cause
        assert opened(tmp_path)[0].shown(text), "the file is whole, and as it was"
        with pytest.raises(NotThere):
            await tokens.revoke("ffffffff")
    await tokens.revoke(token.id)
    assert named(conditions) == []
    assert opened(tmp_path)[0].all() == [other]


async def test_one_revoked_while_another_is_written_can_be_revoked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, conditions = opened(tmp_path)
    (first, _), (second, _) = await tokens.create("a", ["read"]), await tokens.create("b", ["read"])
    write, fails = module._write, iter([False, True, False])

    def written(path: Path, content: bytes) -> None:
        if next(fails):
            raise OSError(errno.ENOSPC, "no room")
        write(path, content)

    monkeypatch.setattr(module, "_write", written)
    said = await asyncio.gather(
        tokens.revoke(first.id), tokens.revoke(second.id), return_exceptions=True
    )
    assert isinstance(said[1], StoreError)
    (told,) = conditions.all()
    assert second.id in told.cause.partition("bring back")[2]
    assert await tokens.revoke(second.id) == second
    assert not conditions.all()
    assert not opened(tmp_path)[0].any


async def test_many_changes_at_once_are_all_kept(tmp_path: Path) -> None:
    tokens, _ = opened(tmp_path)
    made = await asyncio.gather(*(tokens.create(f"{n}", ["read"]) for n in range(20)))
    await asyncio.gather(
        *(tokens.revoke(token.id) for token, _ in made[:10]),
        *(tokens.create(f"{n}", ["read"]) for n in range(20, 30)),
    )
    assert len(tokens.all()) == 20
    assert opened(tmp_path)[0].all() == tokens.all()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Entrance]:
    async with Entrance(tmp_path) as found:
        yield found


async def test_the_doors_make_list_and_revoke(site: Entrance) -> None:
    order = {"name": "scada", "scopes": ["infer", "read"]}
    made = await site.visitor.ask("POST", TOKENS, body=order, by="unix")
    assert made.status == 201
    assert made.headers["Cache-Control"] == "no-store"
    id, text = made.document["id"], made.document["token"]
    wanted = {"id": id, "name": "scada", "scopes": ["read", "infer"]}
    assert made.document == {**wanted, "token": text}
    listed = await site.visitor.ask("GET", TOKENS, by="unix")
    (row,) = listed.document["tokens"]
    assert {key: row[key] for key in wanted} == wanted
    assert row.keys() == {*wanted, "created_us"}
    shown = await site.visitor.ask("GET", "/api/v1/session", bearer(text))
    assert shown.document == {"name": "scada", "scopes": ["read", "infer"]}
    gone = await site.visitor.ask("DELETE", f"{TOKENS}/{id}", by="unix")
    assert gone.document == {"id": id, "name": "scada", "revoked": True}
    assert is_a_refusal(await site.visitor.ask("GET", STATUS, bearer(text)), 401)
    assert is_a_refusal(await site.visitor.ask("DELETE", f"{TOKENS}/{id}", by="unix"), 404)


@pytest.mark.parametrize(
    "order",
    [
        *({}, {"name": "x"}, {"name": "x", "scopes": []}, {"name": "x", "scopes": ["root"]}),
        *({"name": 1, "scopes": ["read"]}, {"name": "x", "scopes": ["read"], "id": "0"}),
        {"name": "x", "scopes": ["read"] * 5},
    ],
)
async def test_an_order_that_is_none_makes_nothing(site: Entrance, order: object) -> None:
    answer = await site.visitor.ask("POST", TOKENS, body=order, by="unix")
    assert is_a_refusal(answer, 400)
    assert "admin" in answer.document["hint"]
    assert not site.tokens.any


async def test_who_revokes_his_own_token_has_his_answer(site: Entrance) -> None:
    text = await site.token("admin")
    id = site.tokens.all()[0].id
    assert (await site.visitor.ask("DELETE", f"{TOKENS}/{id}", bearer(text))).status == 200
    assert is_a_refusal(await site.visitor.ask("GET", TOKENS, bearer(text)), 401)


class Slow:
    """A door whose answers come piece by piece, for ever."""

    def __init__(self) -> None:
        self.inside = 0
        self.ended = asyncio.Event()

    def route(self) -> Route:
        return get("/api/v1/slow", self._answer, "Slow.", None)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        self.inside += 1
        try:
            while True:
                await answer.write(b"x")
                await asyncio.sleep(0.001)
        except ConnectionError:
            return answer
        finally:
            self.inside -= 1
            self.ended.set()


@pytest.mark.parametrize("way", ["token", "session", "logout", "expiry"])
async def test_work_under_way_ends_with_what_let_it_in(tmp_path: Path, way: str) -> None:
    slow = Slow()
    async with Entrance(tmp_path, [slow.route()]) as site:
        text, other = await site.token(name="one"), await site.token(name="two")
        shown = bearer(text) if way == "token" else await site.login(text)
        if way == "expiry":
            site.clock.now_s += LIFE_S - 0.2
            # Used all the time, as a page is: it is not idle, and yet ends.
            next(iter(site.sessions._held.values())).seen_s = site.clock.now_s
        async with asyncio.timeout(DEADLINE_S):
            reading = asyncio.ensure_future(_read_all(site, shown))
            staying = asyncio.ensure_future(_read_all(site, bearer(other)))
            while slow.inside < 2:
                await asyncio.sleep(0.001)
            if way == "logout":
                answer = await site.visitor.ask(
                    "DELETE", "/api/v1/session", {**shown, "Origin": site.visitor.origin}
                )
                assert answer.status == 200
            elif way != "expiry":
                await site.tokens.revoke(text[3:11])
            await reading
            await slow.ended.wait()
        assert slow.inside == 1, "the other one stays"
        assert not staying.done()
        staying.cancel()
        with suppress(asyncio.CancelledError):
            await staying


async def _read_all(site: Entrance, headers: dict[str, str]) -> None:
    """Read until the agent ends it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.visitor.port)
    lines = [f"{key}: {value}" for key, value in {"Host": "localhost", **headers}.items()]
    writer.write("\r\n".join(["GET /api/v1/slow HTTP/1.1", *lines, "", ""]).encode())
    try:
        with suppress(ConnectionError):
            while await reader.read(1000):
                pass
    finally:
        writer.transport.abort()


async def test_a_clock_that_stands_at_nothing_makes_tokens(tmp_path: Path) -> None:
    class Dead(Still):
        def wall(self) -> float:
            return 0.0

    tokens, _ = opened(tmp_path, Dead())
    token, text = await tokens.create("one", ["read"])
    assert (token.created_us, tokens.shown(text)) == (0, token)
