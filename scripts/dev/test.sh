#!/bin/sh
# All tests that this machine can run; pytest's summary is the last thing printed.
set -eu
cd "$(dirname "$0")/../.."

# What the tests drive beside what the rehearsal installs itself: a browser, four shells, a database, rsync, a web portal.
packages="apache2-bin chromium dash ksh libnss3-tools postgresql rsync ruby zsh"
# shellcheck disable=SC2086 # a list of packages
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $packages >/dev/null 2>&1; then
    echo "Installing for the tests: $packages"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
fi

scripts/dev/check.sh lint types
exec .venv/bin/pytest "$@"
