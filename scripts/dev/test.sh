#!/bin/sh
# All tests that this machine can run, or what pytest's arguments choose; what failed is the last thing printed.
set -eu
cd "$(dirname "$0")/../.."

# What the tests drive beside what the rehearsal installs itself: a browser, four shells, a database, rsync, a web portal,
# an ACME directory and its client, backups.
packages="apache2-bin certbot chromium dash ksh libnss3-tools pebble pgbackrest postgresql rsync ruby zsh"
# shellcheck disable=SC2086 # a list of packages
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $packages >/dev/null 2>&1; then
    echo "Installing for the tests: $packages"
    apt-get update -qq || echo "Going on with the package lists that are there."
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
fi

[ $# -eq 0 ] || exec .venv/bin/pytest "$@"

# Everything else runs beside the tests of machines, in the time that they leave: they take longer, and would wait twice,
# for the other's programs and for their own.  Shown one after the other.
mkdir -p test-results
log=test-results/test.log
nice -n 5 sh -c 'scripts/dev/check.sh lint types && exec .venv/bin/pytest --durations=20 -m "not rehearsal and not long"' \
    >$log 2>&1 &
others=$!
.venv/bin/pytest --durations=20 -m "rehearsal and not long" >$log.machines 2>&1 &
machines=$!
trap 'wait; exit 130' INT # Ctrl-C has reached them, too
trap 'kill $others $machines 2>/dev/null || :; wait; exit 143' TERM HUP # of which one may have ended
failed=0
for run in "$others $log" "$machines $log.machines"; do
    tail -n +1 -f --pid="${run% *}" "${run#* }" &
    wait "${run% *}" || failed=1
    wait $!
done
[ $failed -eq 0 ] || grep -hE '^(FAILED|ERROR) ' $log $log.machines || true
exit $failed
