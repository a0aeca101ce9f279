#!/bin/sh
# Removes what was made for the next time: images, packages, the Python environment, logs.
set -eu
cd "$(dirname "$0")/../.."

folder=${XDG_CACHE_HOME:-$HOME/.cache}/labtrack
if [ -e "$folder/rehearsal" ]; then
    echo "The images in $folder/cache are kept: another checkout's rehearsal uses them."
else
    rm -rf "$folder"
fi
rm -rf .venv .ansible build dist test-results .pytest_cache .mypy_cache .ruff_cache .hypothesis
find . -name __pycache__ -type d -prune -exec rm -rf {} +
