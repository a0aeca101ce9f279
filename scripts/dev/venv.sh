#!/bin/sh
# venv.sh [admin|dev]: makes .venv from the hashed requirements; dev adds to admin.  Needs a Python >= 3.11 with venv, finds it, and says what to do if there is none.
set -eu
cd "$(dirname "$0")/../.."
set=${1:-admin}

works() { # is $1 a Python that is new enough and can make an environment?
    "$1" -c 'import ensurepip, ssl, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[1-3]*/bin/python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 && works "$candidate" && command -v "$candidate" && return
    done
    return 1
}

python=$(find_python) || {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null
        python=$(find_python)
    fi
} || {
    echo "No Python 3.11 or newer with its venv module was found.
To fix: apt install python3 python3-venv (Debian 12, Ubuntu 24.04), brew install python (macOS), or set PYTHON=/path/to/python3.11." >&2
    exit 1
}

# Another Python, or a half-made environment: start again.
if [ -e .venv ] && ! { [ -e .venv/.complete ] && .venv/bin/python -c 'import sys' 2>/dev/null; }; then
    rm -rf .venv
fi
[ ! -e .venv/.dev ] || set=dev # what is there is not taken away
rm -f .venv/.complete .venv/.dev
[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "Installing the Python packages of requirements/$set.txt into .venv ..."
# uv, itself locked, installs the rest several times faster than pip.
grep -A 60 '^uv==' requirements/admin.txt | sed '/^ *# via/q' >.venv/uv.txt
.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes "requirements/$set.txt"
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
touch .venv/.complete
[ "$set" = admin ] || touch .venv/.dev
