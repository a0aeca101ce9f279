#!/bin/sh
# Stops and removes the rehearsal and puts this machine back.  Safe at any time, also when nothing is up.
set -eu
cd "$(dirname "$0")/../.."

state=${XDG_CACHE_HOME:-$HOME/.cache}/labtrack/rehearsal
if [ ! -e "$state" ] && [ ! -e /sys/class/net/labtrack0 ]; then
    echo "No rehearsal is up on this machine."
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "The rehearsal was started by root, so taking it down needs root.
To fix: sudo make down" >&2
    exit 2
fi
[ -e .venv/.complete ] || scripts/dev/venv.sh
mkdir -p build/logs
log=build/logs/down.log
echo "Taking the rehearsal down ..."
if ! .venv/bin/ansible-playbook playbooks/rehearsal/down.yml "$@" >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "The rehearsal is not wholly down.
To fix: see above (all of it in $log), then call this again: it goes on from where it stopped." >&2
    exit 1
fi
sed -n 's/^    msg: //p' "$log"
