#!/bin/sh
# Makes the peers' locked sets anew; needs `uv` (pip install uv). Commit what it writes.
# mlserver: its workers ask for an event loop that uvloop from 0.22 on no longer makes by itself.
# bentoml: 1.4.40 asks for certifi>=2026.10.19, which was not to be had.
set -eu
cd "$(dirname "$0")"
lock() {
    peer=$1; shift
    printf '%s\n' "$@" | uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header \
        --no-annotate --no-emit-index-url --no-emit-find-links --upgrade - -o "$peer/requirements.txt"
}
lock litserve litserve==0.2.19 onnxruntime==1.31.1 uvloop httptools
lock pytriton nvidia-pytriton==0.7.0 onnxruntime==1.31.1
lock mlserver mlserver==1.7.1 onnxruntime==1.31.1 'uvloop<0.22'
lock bentoml bentoml==1.4.39 onnxruntime==1.31.1 uvloop httptools
