"""`python -m labtrack`, where the command itself is not on the PATH."""

from labtrack.cli import main

main()
