"""Presigned requests: the published vector, a store that checks for itself, and no key in a log."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from yarl import URL

from agent.errors import ConfigError
from fleet.mqtt.s3 import Bucket, BucketError, Keys, keys, presign
from tests.object_store import ACCESS, BUCKET, REGION, SECRET, ObjectStore, fault
from tests.outside import free_port

# The example of Amazon's S3 documentation, "Authenticating Requests: Using Query Parameters".
EXAMPLE = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
EXAMPLE_URL = "https://examplebucket.s3.amazonaws.com/test.txt"
EXAMPLE_AT = datetime(2013, 5, 24, tzinfo=UTC).timestamp()
EXAMPLE_SIGNATURE = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
CONTENT = b"flac" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAMES = ("plant 7~é", "e1", "x.segments", 12)


class Hands:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


@asynccontextmanager
async def bucket(wall: Hands, secret: str = SECRET) -> AsyncIterator[tuple[Bucket, ObjectStore]]:
    async with ObjectStore(wall) as store, aiohttp.ClientSession() as session:
        yield Bucket(store.url, BUCKET, REGION, Keys(ACCESS, secret), session, "far/", wall), store


async def put(url: str, headers: dict[str, str], content: bytes) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.put(URL(url, encoded=True), data=content, headers=headers) as answer,
    ):
        return answer.status


def test_the_signature_is_that_of_the_published_example() -> None:
    signed = presign(EXAMPLE, "us-east-1", "GET", EXAMPLE_URL, {}, 86_400, EXAMPLE_AT)
    assert signed.endswith(f"&X-Amz-Signature={EXAMPLE_SIGNATURE}")


def test_the_store_of_the_tests_knows_the_published_example() -> None:
    query = (
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2F"
        "us-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&"
        f"X-Amz-SignedHeaders=host&X-Amz-Signature={EXAMPLE_SIGNATURE}"
    )
    asked = ("GET", "/test.txt", query, {"Host": "examplebucket.s3.amazonaws.com"})
    assert fault(EXAMPLE.secret, *asked, EXAMPLE_AT + 86_400) == ""
    assert fault(EXAMPLE.secret, *asked, EXAMPLE_AT + 86_401) == "AccessDenied"
    assert fault("another", *asked, EXAMPLE_AT) == "SignatureDoesNotMatch"


async def test_an_object_is_seen_once_it_is_there_whole() -> None:
    async with bucket(Hands()) as (ours, store):
        place = ours.url(*NAMES)
        assert not await ours.sees(place, len(CONTENT), SHA256)
        url, headers = ours.grant(place, SHA256, 60)
        assert await put(url, headers, CONTENT) == 200
        assert list(store.objects) == ["far/plant 7~é/e1/x.segments/12"]
        assert await ours.sees(place, len(CONTENT), SHA256)
        assert not await ours.sees(place, len(CONTENT) + 1, SHA256)
        assert not await ours.sees(place, len(CONTENT), "00" * 32)


async def test_a_store_that_keeps_no_checksums_is_asked_for_the_size_alone() -> None:
    async with bucket(Hands()) as (ours, store):
        store.checksums = False
        place = ours.url(*NAMES)
        assert await put(*ours.grant(place, SHA256, 60), CONTENT) == 200
        assert await ours.sees(place, len(CONTENT), SHA256)
        assert not await ours.sees(place, len(CONTENT) - 1, SHA256)


async def test_a_grant_takes_this_content_alone_and_only_for_a_while() -> None:
    wall = Hands()
    async with bucket(wall) as (ours, store):
        place = ours.url(*NAMES)
        url, headers = ours.grant(place, SHA256, 60)
        assert await put(url, headers, CONTENT[:-1] + b"!") == 400
        assert await put(url, {}, CONTENT) == 403
        assert await put(url, {**headers, "x-amz-acl": "public-read"}, CONTENT) == 403
        assert await put(url.replace("/12?", "/13?"), headers, CONTENT) == 403
        wall.at += 61
        assert await put(url, headers, CONTENT) == 403
        assert not store.objects


async def test_a_store_that_says_neither_yes_nor_no_is_an_error() -> None:
    async with bucket(Hands(), "wrong") as (ours, _):
        with pytest.raises(BucketError, match="answered 403") as refused:
            await ours.sees(ours.url(*NAMES), 1, SHA256)
        assert "keys" in refused.value.hint
    async with aiohttp.ClientSession() as session:
        nobody = f"http://127.0.0.1:{free_port()}"
        ours = Bucket(nobody, BUCKET, REGION, Keys(ACCESS, SECRET), session)
        with pytest.raises(BucketError, match="does not answer") as silent:
            await ours.sees(ours.url(*NAMES), 1, SHA256)
        assert "Signature" not in str(silent.value)


async def test_a_bucket_stands_in_the_path_or_in_the_host() -> None:
    async with aiohttp.ClientSession() as session:
        ours = [
            Bucket(at, "b-1", REGION, EXAMPLE, session).url("d", "e", "s", 1)
            for at in ("https://s3.site:9000/", "https://{bucket}.s3.amazonaws.com")
        ]
        assert ours == ["https://s3.site:9000/b-1/d/e/s/1", "https://b-1.s3.amazonaws.com/d/e/s/1"]
        for wrong in ("s3.site", "ftp://s3.site", "https://"):
            with pytest.raises(ConfigError, match="not the address"):
                Bucket(wrong, "b", REGION, EXAMPLE, session)


async def test_no_name_leads_out_of_its_device(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        ours = Bucket("https://s3", "b", REGION, EXAMPLE, session)
        for name in ("..", ".", "a/b", "", "a\nb"):
            with pytest.raises(ValueError, match="not the names"):
                ours.url("d", name, "s", 1)
        assert urlsplit(ours.url("d", "a?b=c&d", "%2e", 1)).path == "/b/d/a%3Fb%3Dc%26d/%252e/1"


def test_keys_come_from_a_file_or_the_environment_and_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        "[default]\naws_access_key_id = A\naws_secret_access_key = S%x\n"
        "[lent]\naws_access_key_id = B\naws_secret_access_key = T\naws_session_token = U\n"
    )
    assert keys(file, {}) == Keys("A", "S%x")
    assert keys(file, {}, "lent") == Keys("B", "T", "U")
    named = {"AWS_ACCESS_KEY_ID": "C", "AWS_SECRET_ACCESS_KEY": "hidden"}
    assert keys(None, named) == Keys("C", "hidden")
    assert "hidden" not in f"{keys(None, named)!r} {keys(None, named)}"


def test_keys_that_are_not_there_are_told_without_what_is(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    for text in ("S3CRET", "[default]\nS3CRET", "[other]\naws_secret_access_key=S3CRET"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="no keys") as refused:
            keys(file, {})
        assert "S3CRET" not in f"{refused.value} {refused.value.hint}"
    with pytest.raises(ConfigError, match="No such file"):
        keys(tmp_path / "absent", {})
    with pytest.raises(ConfigError, match="no keys"):
        keys(None, {})


def test_a_session_token_is_part_of_the_signature() -> None:
    lent = Keys(EXAMPLE.access, EXAMPLE.secret, "a/token+")
    signed = presign(lent, "us-east-1", "GET", EXAMPLE_URL, {}, 60, EXAMPLE_AT)
    parts = urlsplit(signed)
    assert "X-Amz-Security-Token=a%2Ftoken%2B" in parts.query
    asked = ("GET", parts.path, parts.query, {"Host": parts.netloc}, EXAMPLE_AT)
    assert fault(EXAMPLE.secret, *asked) == ""
