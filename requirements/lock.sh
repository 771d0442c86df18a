#!/bin/sh
# Makes the locked sets anew from pyproject.toml; needs `uv` (pip install uv). Commit what it writes.
#   device.txt  a device image        run.txt  `make run`, with the embedded broker        dev.txt  `make test`
#   fleet.txt   the cloud side, with PostgreSQL
set -eu
cd "$(dirname "$0")"
lock() {
    out=$1; shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
        --no-annotate --no-emit-index-url --no-emit-find-links --upgrade "$@" ../pyproject.toml -o "$out"
}
lock dev.txt --extra dev
lock run.txt --extra cpu --extra broker --extra build --constraint dev.txt
lock device.txt --extra cpu --extra build --constraint dev.txt
lock fleet.txt --extra fleet --extra build --constraint dev.txt
