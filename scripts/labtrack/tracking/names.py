"""The tags by which a run at the server is known as a copy of a recorded one.

MLflow gives every run a new id and lets nobody choose it, so a copy's identity is kept in tags that go
into `runs/create` itself: no copy is ever at the server without them.  A server of the kit's gives the copy
the recorded id by them (labtrack_server/identities.py).
"""

from __future__ import annotations

PREFIX = "labtrack."
SOURCE_RUN = "labtrack.source_run_id"  # the run's id in the recording
SOURCE_STORE = "labtrack.source_store"  # the recording's identity, which survives moving it
SOURCE_MODEL = "labtrack.source_model_id"  # a logged model's id in the recording
SOURCE_VERSION = "labtrack.source_version"  # a registered version's number in the recording
CREATED = "labtrack.created"  # "<ms since 1970>-<maker>": which of two copies is the older, and whose it is
STATE = "labtrack.sync_state"  # what was sent so far; with "complete" it is the last but one call of a run
PENDING = "labtrack.pending"  # references to runs that are not at the server yet
OVERFLOW = "labtrack.overflow"  # what MLflow's limits cut, in words
ACCEPTED = "labtrack.accepted_damage"  # what could not be read in the recording, and the user knows
DUPLICATE = "labtrack.duplicate_of"  # a second copy of the same run, which came too late

# Written by sync itself: of a source that is a server, these are the facts of an earlier copy.
OWN = frozenset({SOURCE_RUN, SOURCE_STORE, CREATED, STATE, PENDING, OVERFLOW, ACCEPTED, DUPLICATE})

FOLDER = "labtrack"  # sync's own artifacts in a run
OVERFLOW_FILE = f"{FOLDER}/overflow.json"
