"""Asks and grants: what is no blob, no name or no answer is refused."""

import msgspec
import pytest

from agent.errors import ProtocolError
from agent.protocol import grants
from agent.protocol.grants import Ask, Grant

ASK = Ask(epoch="e1", stream="x.segments", seq=3, size=7, sha256="ab" * 32)
SAYS = {"epoch": "e1", "stream": "x.segments", "seq": 3, "sha256": "ab" * 32}


def test_an_ask_and_its_grant_come_back() -> None:
    assert grants.decode_ask(grants.encode(ASK)) == ASK
    grant = Grant(**SAYS, url="https://s/k", headers={"x-amz-a": "b"}, expires_s=60)
    assert grants.decode_grant(grants.encode(grant)) == grant
    assert grants.answers(grant, ASK)


@pytest.mark.parametrize("other", [{"epoch": "e2"}, {"stream": "y"}, {"seq": 4}, {"sha256": "x"}])
def test_a_grant_answers_its_own_ask_alone(other: dict[str, object]) -> None:
    assert not grants.answers(Grant(**{**SAYS, "stored": True, **other}), ASK)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seq": 0},
        {"size": 0},
        {"size": grants.SIZE_BYTES_MAX + 1},
        {"sha256": "AB" * 32},
        {"epoch": ".."},
        {"stream": "a/b"},
        {"stream": ""},
        {"stream": "x" * 201},
    ],
)
def test_an_ask_that_names_no_blob_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        grants.decode_ask(msgspec.json.encode({**msgspec.to_builtins(ASK), **wrong}))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"stored": True, "refused": "no"},
        {"url": "https://s", "headers": {"content-Length": "1"}},
        {"url": "https://s", "headers": {f"x-{i}": "" for i in range(21)}},
        {"url": "https://s", "expires_s": -1},
    ],
)
def test_a_grant_says_one_thing_and_sets_no_header_of_http(wrong: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        grants.decode_grant(msgspec.json.encode({**SAYS, **wrong}))


def test_what_is_larger_than_any_grant_is_not_read() -> None:
    for decode in (grants.decode_ask, grants.decode_grant):
        with pytest.raises(ProtocolError, match="16384 at most"):
            decode(b" " * 20_000)
