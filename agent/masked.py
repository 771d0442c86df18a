"""What may be shown of a text or a document: without what looks like a secret.

Known by its key (`password`, `broker_token`, ...), by its place (a URL's user, an option of a
command line) or by its form (tokens and keys of Holdfast, age and PEM, JSON web tokens). Rather a
word too many: what is masked is `***`.
"""

import re
from typing import Any

HIDDEN = "***"
_WORDS = "password|passwd|secret|token|passphrase|private_key|authorization"
_KEY = re.compile(rf"[\w.-]*(?:{_WORDS})", re.I)
_LINE = re.compile(
    r"^(?P<key>\s*[\"']?[\w-]*(?:password|secret|token|passphrase)[\"']?\s*:\s*)\S.*$", re.M | re.I
)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.S)
_URL = re.compile(r"(?<=//)[^/\s\"']*@")
_RULES = [  # none of them looks at a long word again from each of its letters
    (_URL, f"{HIDDEN}@"),
    (re.compile(r"\b(hf_[0-9a-f]{8}_)[\w-]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(hf1key:)\S+"), rf"\1{HIDDEN}"),
    (re.compile(r"AGE-SECRET-KEY-\w+", re.I), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,2000}\.[\w-]+(?:\.[\w-]*)?"), HIDDEN),
    (re.compile(r"\b(basic|bearer)\s+[\w.~+/=-]{8,}", re.I), rf"\1 {HIDDEN}"),
    (
        re.compile(r"([?&][\w-]{0,40}(?:signature|sig|credential|key)=)[^&\s\"']+", re.I),
        rf"\1{HIDDEN}",
    ),
    (
        re.compile(
            rf"(--[\w-]{{0,40}}(?:{_WORDS})[\"']?[\s,=]+)(?:\"[^\"]*\"|'[^']*'|[^\s\"',\]]+)", re.I
        ),
        rf"\1{HIDDEN}",
    ),
    (
        re.compile(
            rf"((?:{_WORDS})\\?[\"']?\s*[:=]\s*)"
            r"(?:\"(?:[^\"\\]|\\.)*(?:\"|$)|\\\"[^\"\\]*|'[^']*(?:'|$)|[^\s\"',;&}\]]+)",
            re.I,
        ),
        rf"\1{HIDDEN}",
    ),
]
# A line in which none of these stands, in small letters, is as it was: most lines of a log.
_HINTS = (
    *_WORDS.split("|"),
    *("@", "hf_", "hf1key:", "age-secret-key-", "eyj", "basic", "bearer"),
    *("signature=", "sig=", "credential=", "key="),
)


def masked(document: bytes) -> str:
    """A configuration as it may be shown: without what looks like a password, in a URL too."""
    return _LINE.sub(rf"\g<key>{HIDDEN}", _URL.sub(f"{HIDDEN}@", document.decode(errors="replace")))


def masked_text(text: str) -> str:
    """Any text; line by line, so that other threads have their turn meanwhile."""
    return "\n".join(map(_masked_line, _PEM.sub(HIDDEN, text).split("\n")))


def masked_value(value: Any) -> Any:
    """A JSON value: what stands under a telling key, and each text in it."""
    if isinstance(value, dict):
        return {key: _under(key, one) for key, one in value.items()}
    if isinstance(value, list):
        return [masked_value(one) for one in value]
    return masked_text(value) if isinstance(value, str) else value


def _masked_line(line: str) -> str:
    small = line.lower()
    if not any(hint in small for hint in _HINTS):
        return line
    line = _LINE.sub(rf"\g<key>{HIDDEN}", line)
    for rule, shown in _RULES:
        line = rule.sub(shown, line)
    return line


def _under(key: str, value: Any) -> Any:
    telling = _KEY.fullmatch(key) and value not in (None, "") and not isinstance(value, bool)
    return HIDDEN if telling else masked_value(value)
