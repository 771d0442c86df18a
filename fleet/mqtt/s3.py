"""An S3-compatible store: URLs that let a device put one object, and a look at what is there.

Limits  : one PUT for an object, so 5 GiB at most (protocol/grants.py); a URL lives a week at most;
          a key has KEY_BYTES_MAX.
Format  : key DEVICE/EPOCH/STREAM/SEQ, each part percent-encoded, below an optional prefix.
Recovery: nothing is kept here; the store's own word (`sees`) is asked anew each time.

Requests are signed in the query (AWS Signature Version 4), by the cloud's clock, which the store
compares with its own. Keys never appear in a log, a message or a repr.
"""

import base64
import configparser
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

import aiohttp
from msgspec import Struct
from yarl import URL

from agent.errors import ConfigError, HoldfastError
from agent.protocol.grants import fits_key

EXPIRES_S_MAX = 604_800
KEY_BYTES_MAX = 1024  # of an object, in UTF-8
LOOK_S = 10.0  # for a HEAD, all in all
_LOOK_EXPIRES_S = 60
_AWAY = (401, 403, 429)  # what any other HEAD would be answered, too
CHECKSUM = "x-amz-checksum-sha256"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ALGORITHM = "AWS4-HMAC-SHA256"
_UNSIGNED = "UNSIGNED-PAYLOAD"  # the body is guarded by the checksum, a signed header


class BucketError(HoldfastError):
    """The store does not answer, or not as it should; it may later."""


class BucketAway(BucketError):
    """It does not answer, does not let us in, or is overrun: so it is for whoever asks next."""


class Keys(Struct, frozen=True):
    """Who signs; `session` is the token of keys that were lent for a while."""

    access: str
    secret: str
    session: str = ""

    def __repr__(self) -> str:
        return "Keys(...)"


def keys(file: Path | None, environment: Mapping[str, str], profile: str = "default") -> Keys:
    """Keys from an AWS credentials file, or AWS_ACCESS_KEY_ID and its like. Raises ConfigError."""
    named: Mapping[str, str] = {name.lower(): value for name, value in environment.items()}
    where = "the environment"
    if file is not None:
        parser, where = configparser.ConfigParser(interpolation=None), f"{file} [{profile}]"
        try:
            parser.read_string(file.read_text(encoding="utf-8"))
            named = parser[profile]
        except OSError as error:
            raise ConfigError(
                f"{file}: {error.strerror}", "name a file that can be read"
            ) from error
        except (configparser.Error, UnicodeDecodeError, KeyError):
            named = {}  # what a parser quotes of the file may be a key
    access = named.get("aws_access_key_id", "")
    secret = named.get("aws_secret_access_key", "")
    if not access or not secret:
        raise ConfigError(
            f"{where}: no keys for the object store",
            "set aws_access_key_id and aws_secret_access_key, as in an AWS credentials file",
        )
    return Keys(access, secret, named.get("aws_session_token", ""))


def presign(
    keys: Keys,
    region: str,
    method: str,
    url: str,
    headers: Mapping[str, str],
    expires_s: int,
    at: float,
) -> str:
    """`url` (its path percent-encoded, no query) signed for this method and these headers.

    `at` is the wall time in seconds since 1970. Who uses it must send exactly these headers.
    """
    parts = urlsplit(url)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    signed = {"host": parts.netloc, **{name.lower(): headers[name] for name in headers}}
    query = {
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{keys.access}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": ";".join(sorted(signed)),
    }
    if keys.session:
        query["X-Amz-Security-Token"] = keys.session
    asked = "&".join(f"{quote(k, '-_.~')}={quote(query[k], '-_.~')}" for k in sorted(query))
    told = "".join(f"{name}:{signed[name].strip()}\n" for name in sorted(signed))
    request = "\n".join(
        [method, parts.path or "/", asked, told, query["X-Amz-SignedHeaders"], _UNSIGNED]
    )
    signature = _signature(keys.secret, stamp, scope, request)
    return f"{parts.scheme}://{parts.netloc}{parts.path}?{asked}&X-Amz-Signature={signature}"


def _signature(secret: str, stamp: str, scope: str, request: str) -> str:
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{secret}".encode()
    for step in scope.split("/"):
        key = hmac.digest(key, step.encode(), "sha256")
    return hmac.digest(key, f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}".encode(), "sha256").hex()


class S3(Struct, frozen=True, kw_only=True):
    """The way to a bucket, as the command line says it; without `keys_file`, the environment has
    the keys."""

    bucket: str
    endpoint: str = "https://{bucket}.s3.amazonaws.com"
    region: str = "us-east-1"
    prefix: str = ""
    keys_file: str | None = None
    profile: str = "default"

    def open(self, environment: Mapping[str, str], session: aiohttp.ClientSession) -> "Bucket":
        """The bucket, reached over `session`. Raises ConfigError."""
        if not _BUCKET.fullmatch(self.bucket):
            raise ConfigError(
                f"--s3-bucket {self.bucket!r} is no bucket's name",
                "3 to 63 small letters, digits, dots and hyphens",
            )
        file = Path(self.keys_file) if self.keys_file else None
        found = keys(file, environment, self.profile)
        return Bucket(self.endpoint, self.bucket, self.region, found, session, self.prefix)


class Bucket:
    """One bucket; `endpoint` with `{bucket}` in its host names it there, else in the path."""

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        region: str,
        keys: Keys,
        session: aiohttp.ClientSession,
        prefix: str = "",
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Raises ConfigError where `endpoint` is no URL of a host."""
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query:
            raise ConfigError(
                f"{endpoint}: not the address of an object store",
                "write https://HOST, or https://{bucket}.HOST",
            )
        host = endpoint.rstrip("/")
        if "{bucket}" not in host:
            host += "/{bucket}"
        self._root = host.replace("{bucket}", quote(bucket))
        self._prefix = quote(prefix, "/-_.~")
        self._region = region
        self._keys = keys
        self._session = session
        self._wall = wall

    def url(self, device: str, epoch: str, stream: str, seq: int) -> str:
        """Where the object of a record lies, unsigned.

        Raises ValueError for what is no name, BucketError for a key that no store takes.
        """
        names = (device, epoch, stream)
        if not all(map(fits_key, names)):
            raise ValueError(f"not the names of a device, an epoch and a stream: {names}")
        key = self._prefix + "/".join(quote(part, "-_.~") for part in (*names, str(seq)))
        many = len(unquote_to_bytes(key))
        if many > KEY_BYTES_MAX:
            raise BucketError(
                f"the object's key would have {many} bytes; expected {KEY_BYTES_MAX} at most",
                "give the device and its streams shorter names",
            )
        return f"{self._root}/{key}"

    def grant(self, url: str, sha256: str, expires_s: int) -> tuple[str, dict[str, str]]:
        """A URL that takes this content alone, for so long, and the headers to send with it."""
        headers = {CHECKSUM: _checksum(sha256)}
        return self._signed("PUT", url, headers, expires_s), headers

    async def sees(self, url: str, size: int, sha256: str) -> bool:
        """Whether the object is there, with this size, and this checksum if the store kept it.

        Raises BucketError when the store says neither yes nor no.
        """
        headers = {"x-amz-checksum-mode": "ENABLED"}
        signed = URL(self._signed("HEAD", url, headers, _LOOK_EXPIRES_S), encoded=True)
        timeout = aiohttp.ClientTimeout(total=LOOK_S)
        try:
            async with self._session.head(signed, headers=headers, timeout=timeout) as answer:
                status, told = answer.status, answer.headers
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise BucketAway(f"the object store does not answer: {reason}") from error
        if status == 404:
            return False
        if status != 200:
            kind = BucketAway if status >= 500 or status in _AWAY else BucketError
            raise kind(
                f"the object store answered {status} to a HEAD",
                "check its keys (they must allow to read and to list), its region and both clocks",
            )
        kept = told.get(CHECKSUM, _checksum(sha256))
        return told.get("Content-Length") == str(size) and kept == _checksum(sha256)

    def _signed(self, method: str, url: str, headers: Mapping[str, str], expires_s: int) -> str:
        now = self._wall()
        return presign(self._keys, self._region, method, url, headers, expires_s, now)


def _checksum(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()
