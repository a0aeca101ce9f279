#!/bin/sh
# Resolves requirements/*.in (and the server's) into files with hashes, without naming any host.
set -eu
cd "$(dirname "$0")/../.."
lock() { # lock IN OUT PYTHON_VERSION
    .venv/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
        --custom-compile-command 'make lock' --python-version "$3" "$1" --output-file "$2"
}
for name in admin dev client; do
    lock "requirements/$name.in" "requirements/$name.txt" 3.11
done
lock roles/mlflow/files/requirements.in roles/mlflow/files/requirements.txt 3.11
