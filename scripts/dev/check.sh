#!/bin/sh
# check.sh [lint|types|unit]...: the part of the tests that needs no machines.
set -eu
cd "$(dirname "$0")/../.."
PATH=$PWD/.venv/bin:$PATH

lint() {
    ruff check --quiet .
    ruff format --check --quiet .
    yamllint --strict .
    ansible-lint -q
    git ls-files -z '*.sh' scripts/vault-password .ci/run | xargs -0 -r shellcheck
}
types() { mypy; }
unit() { pytest -q tests/unit; }

[ $# -gt 0 ] || set -- lint types unit
for part; do "$part"; done
