#!/bin/sh
# Resolves requirements/*.in (and the server's) into files with hashes, without naming any host.
set -eu
cd "$(dirname "$0")/../.."
lock() { # lock IN OUT PYTHON_VERSION [OPTION...]
    in=$1 out=$2 python=$3
    shift 3
    .venv/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
        --custom-compile-command 'make lock' --python-version "$python" "$@" "$in" --output-file "$out"
}
for name in admin dev client workflows; do
    lock "requirements/$name.in" "requirements/$name.txt" 3.11
done
for name in dist dist-s3; do # one file for a folder of all Pythons: one version of each
    lock "requirements/$name.in" "requirements/$name.txt" 3.9 --fork-strategy fewest
done
for release in roles/mlflow/files/requirements-*.in; do # one for each MLflow that a lab may run
    lock "$release" "${release%.in}.txt" 3.11
done
