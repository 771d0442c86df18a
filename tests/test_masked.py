"""No secret is shown, by its key, its place or its form; what is none stays."""

import json

import pytest

from agent.masked import masked, masked_text, masked_value

SECRET = "hunter2hunter2"
TEXTS = [
    f"mqtt://user:{SECRET}@broker:1883/x",
    f"mqtt://user:p@{SECRET}@broker",
    f"password: {SECRET}",
    f"  'broker_token' : two words, {SECRET}",
    f"link: {{password: {SECRET}, port: 1}}",
    f'{{"password": "a \\" {SECRET}"}}',
    f'said {{\\"api_token\\": \\"{SECRET}\\"}}',
    f"it began with secret={SECRET} and more",
    f"hook --auth-token {SECRET}",
    f'["hook", "--password", "{SECRET}"]',
    f"GET /x?X-Amz-Signature={SECRET}&a=1",
    f"Authorization: Bearer {SECRET}",
    f"sent bearer {SECRET}",
    f"hf_0123abcd_{SECRET}-{SECRET}",
    f"hf1key:{SECRET}=",
    f"AGE-SECRET-KEY-1{SECRET}",
    f"eyJhbGciOiJI.{SECRET}.{SECRET}",
    f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}\n-----END EC PRIVATE KEY-----",
    f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_secret_in_a_text_is_not_shown(text: str) -> None:
    assert SECRET not in masked_text(text)
    assert SECRET not in json.dumps(masked_value({"text": [text]}))


@pytest.mark.parametrize("key", ["password", "broker_password", "api.token", "client_secret"])
def test_what_stands_under_a_telling_key_is_not_shown(key: str) -> None:
    assert masked_value([{key: {"a": SECRET}}]) == [{key: "***"}]


def test_what_is_no_secret_stays() -> None:
    value = {
        "tokens": [{"id": "0123abcd", "name": "grafana"}],
        "password_file": "/etc/holdfast/password",
        "token": None,
        "key": "hf1pub:AAAA",
        "text": "the broker at mqtt://***@b:1883 refused: see docs//a.md, me@home",
        "number": 7,
    }
    assert masked_value(value) == value
    assert masked_text("a\nb\n") == "a\nb\n"


def test_a_long_word_is_looked_at_once() -> None:
    """Not in a time that grows with the square of it."""
    assert masked_text("a" * 1_000_000).startswith("aaa")


def test_of_a_configuration_what_looks_like_a_password_is_not_shown() -> None:
    text = b"""# mqtt://user:hunter2@old
link:
  password_file: /etc/holdfast/password   # where it is may be known
  password: hunter2
  "api_token" : 'hunter2'
"""
    shown = masked(text)
    assert "hunter2" not in shown
    assert "/etc/holdfast/password" in shown
    assert "mqtt://***@old" in shown
