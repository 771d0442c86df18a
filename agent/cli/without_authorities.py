"""aiohttp, without the authorities that it would read as it is loaded.

It makes two contexts of TLS then, each with all that the system trusts: 35 ms of a processor and
0.8 MiB each, for nothing, since all that asks by https here makes a context of its own, with the
link's authorities, too (sync/up/objects.py, updates/http.py). One that did not would trust nobody.
"""

import os

PLACES = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # where OpenSSL looks; the system's, where unset


def aiohttp_is_loaded() -> None:
    """Before anybody else loads it."""
    before = {name: os.environ.get(name) for name in PLACES}
    os.environ.update(dict.fromkeys(PLACES, os.devnull))
    try:
        import aiohttp  # noqa: F401
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
