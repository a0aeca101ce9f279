#!/bin/sh
# check.sh [lint|types|unit|infra]...: the part of the tests that needs no machines.
set -eu
cd "$(dirname "$0")/../.."
PATH=$PWD/.venv/bin:$PATH

lint() {
    ruff check --quiet .
    ruff format --check --quiet .
    yamllint --strict .
    ansible-lint -q
    if command -v terraform >/dev/null; then
        terraform fmt -check -recursive terraform
    else
        echo "Not checked here: the format of terraform/ (terraform is not installed)"
    fi
    git ls-files -z '*.sh' scripts/vault-password .ci/run | xargs -0 shellcheck
}
types() { mypy; }
unit() { pytest -q tests/unit; }
infra() { pytest -q tests/terraform; }

[ $# -gt 0 ] || set -- lint types unit infra
for part; do "$part"; done
