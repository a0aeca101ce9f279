"""What an instance remembers about accounts, and when all instances forget it.

Measured in docs/reference/performance.md: a password costs 0.3 s of CPU time to check, and ten queries go into whether
an account may write to a run, for each logged metric again.  So "yes" is remembered, never "no", and never "is an
admin": a right that is given counts at once.

A right that is taken away counts at once too.  Whatever changes the database of accounts also changes the time of a
file that all instances look at for each question (a stat, about 2 microseconds).  An answer counts only as long as
that time is the one from before the question was asked, so an answer that was being worked out during the change is not
kept.  The seconds after which an answer is forgotten anyway are for a change that no instance made, as by psql;
`mlflowctl forget` is for that too.
"""

import logging
import os
import re
import threading
import time
from collections.abc import MutableMapping
from pathlib import Path

from cachetools import LRUCache, TTLCache
from mlflow.server import auth
from sqlalchemy import event
from sqlalchemy.orm import Session

from labtrack_server.patching import replace

_logger = logging.getLogger("labtrack")

FOLDER = Path(os.environ.get("LABTRACK_RUN_DIRECTORY", "/run/mlflow"))
PERMISSION_SECONDS = int(os.environ.get("LABTRACK_PERMISSION_CACHE_SECONDS", "15"))
ENTRIES = 10_000
WRITE = re.compile(r"\s*(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM)\s+\"?(\w+)", re.IGNORECASE)


class Epoch:
    """A file whose time tells all instances that something which they remember has changed."""

    def __init__(self, path):
        self.path = Path(path)

    def now(self):
        """A value that changes with the file; None without a file: nothing may be remembered then."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self.advance()
            return None
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def advance(self):
        """Make all instances forget.  A failure is for the journal: the answers' seconds bound what follows."""
        try:
            file = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                # with all nanoseconds: the kernel's own stamp is the same for two changes within 4 ms
                os.utime(file, ns=(time.time_ns(), time.time_ns()))
            finally:
                os.close(file)
        except OSError as error:
            _logger.error("labtrack: %s: %s: other instances remember what has changed", self.path, error)


ACCOUNTS = Epoch(FOLDER / "accounts.epoch")
PERMISSIONS = Epoch(FOLDER / "permissions.epoch")


class Remembered(MutableMapping):
    """A bounded mapping whose entries count only until EPOCH changes.

    `get` notes when the question was asked, and a value that is set by the same thread is kept for that time.
    """

    def __init__(self, cache, epoch):
        self._cache, self._epoch = cache, epoch
        self._lock, self._asked = threading.Lock(), threading.local()

    def get(self, key, default=None):
        self._asked.at = now = self._epoch.now()
        with self._lock:
            at, value = self._cache.get(key, (None, default))
        return value if now is not None and at == now else default

    def keep(self, key, value, at):
        """Keep the answer to a question that was asked when the epoch was AT."""
        if at is not None:
            with self._lock:
                self._cache[key] = (at, value)

    def now(self):
        """When a question is asked, for keep()."""
        return self._epoch.now()

    def __getitem__(self, key):
        missing = object()
        if (value := self.get(key, missing)) is missing:
            raise KeyError(key)
        return value

    def __setitem__(self, key, value):
        self.keep(key, value, getattr(self._asked, "at", None))

    def __delitem__(self, key):
        with self._lock:
            del self._cache[key]

    def __iter__(self):
        with self._lock:
            return iter(list(self._cache))

    def __len__(self):
        return len(self._cache)


def remember(cache, key_of=lambda *arguments: arguments):
    """Keep a function's answers that are worth keeping: whatever is not None or False."""

    def decorate(function):
        def remembering(*arguments):
            key = key_of(*arguments)
            if (known := cache.get(key)) is None and (known := function(*arguments)):
                cache[key] = known
            return known

        return remembering

    return decorate


# What is kept: decisions, the experiment of a run, what MLflow asks of it before something is done with its runs, and
# who is no admin.  (Being no admin gives nobody a right.)
DECISIONS = Remembered(TTLCache(ENTRIES, PERMISSION_SECONDS), PERMISSIONS)
PLACES = Remembered(LRUCache(ENTRIES), PERMISSIONS)  # an id may come again, in another experiment, after a gc
REQUIRED = Remembered(LRUCache(ENTRIES), PERMISSIONS)  # of (experiment, action)
ORDINARY = Remembered(TTLCache(ENTRIES, PERMISSION_SECONDS), PERMISSIONS)
# For native.py alone: whose runs an account may find, and who may see which models runs have made and used.
SEARCHED = Remembered(TTLCache(ENTRIES, PERMISSION_SECONDS), PERMISSIONS)
MODELS = Remembered(TTLCache(ENTRIES, PERMISSION_SECONDS), PERMISSIONS)
# What a search of runs asks beside reading the experiment, and what MLflow asks before it names models.
RUNS_TOO = (auth.Requirement(auth.RESOURCE_TYPE_RUN, "*", auth.ACTION_NOT_DENIED),)
MODELS_TOO = (auth.RESOURCE_TYPE_LOGGED_MODEL,)


def _decision(username, anchor, requirements):
    return username, anchor, tuple(requirements)


def keep_permissions():
    """Ask the databases once in PERMISSION_SECONDS whether an account may do something, not for each request."""
    replace(auth, "authorize", remember(DECISIONS, _decision))

    def runs(original):
        def run_requirement(run_id, action):
            at = PLACES.now()
            known = _required(run_id, action)
            if known is None and (known := original(run_id, action)):
                PLACES.keep(run_id, known[0][1], at)
                REQUIRED.keep((known[0][1], action), known, at)
            # The caller adds to the list.
            return known and (known[0], list(known[1]))

        return run_requirement

    replace(auth, "_run_requirement", runs)
    place_of = remember(PLACES, lambda run_id: run_id)(
        lambda run_id: auth._get_tracking_store().get_run(run_id).info.experiment_id
    )

    def histories(original):
        def may_read(run_ids=None):
            if not run_ids:
                return original(run_ids)
            # MLflow's own reads each run with all that was logged to it, for its experiment alone
            places = [place_of(run_id) for run_id in run_ids]
            return auth._authorize_bulk_in_experiments(places, auth.RESOURCE_TYPE_RUN, "read")

        return may_read

    replace(auth, "validate_can_read_metric_history_bulk", histories)

    def predicate(original):
        def for_all(username, resource_type, also_require=()):
            at = SEARCHED.now()
            may = original(username, resource_type, also_require)
            if resource_type != auth.RESOURCE_TYPE_EXPERIMENT or tuple(also_require) != RUNS_TOO:
                return may

            def may_find(experiment_id):
                if found := may(experiment_id):
                    SEARCHED.keep((username, experiment_id), True, at)
                return found

            return may_find

        return for_all

    def denied(original):
        def denied_tiers(username, resource_types):
            at = MODELS.now()
            found = original(username, resource_types)
            if not found and tuple(resource_types) == MODELS_TOO:
                MODELS.keep(username, True, at)
            return found

        return denied_tiers

    replace(auth, "_role_based_read_predicate", predicate)
    replace(auth, "_denied_sibling_tiers", denied)

    is_ordinary = remember(ORDINARY)(lambda username: not auth.store.get_user(username).is_admin)
    replace(auth, "sender_is_admin", lambda _: lambda: not is_ordinary(auth.authenticate_request().username))


def knows_login(username, password):
    """Has this password been checked, and no account changed since?"""
    if auth._USER_AUTH_CACHE is None:
        return False
    with auth._USER_AUTH_CACHE_LOCK:
        return auth._USER_AUTH_CACHE.get(auth._auth_cache_key(username, password)) is not None


def _required(run_id, action):
    """What MLflow asks before somebody does that with a run, where it is known of another run of the experiment."""
    place = PLACES.get(run_id)
    return place and REQUIRED.get((place, action))


def knows(username, run_id, action):
    """Is it remembered that USERNAME may do that with a run?  False says that nobody has asked, or that it may not."""
    if not ORDINARY.get((username,)) or not (known := _required(run_id, action)):
        return False
    return bool(DECISIONS.get(_decision(username, *known)))


def knows_create(username, experiment_id):
    """Is it remembered that USERNAME may make runs in this experiment?"""
    experiment = (auth.RESOURCE_TYPE_EXPERIMENT, experiment_id)
    decision = _decision(username, experiment, (auth.Requirement(*experiment, "update"), *RUNS_TOO))
    return bool(ORDINARY.get((username,)) and DECISIONS.get(decision))


def knows_histories(username, run_ids):
    """Is it remembered that USERNAME may read the metrics of all of these runs in one request?"""
    places = [PLACES.get(run_id) for run_id in run_ids]
    if not all(places) or not ORDINARY.get((username,)):
        return False
    known = auth._bulk_requirements_in_experiments(places, auth.RESOURCE_TYPE_RUN, "read")
    return bool(known and DECISIONS.get(_decision(username, *known)))


def knows_search(username, experiment_ids):
    """Is it remembered that USERNAME may find the runs of these experiments?"""
    return bool(ORDINARY.get((username,))) and all(SEARCHED.get((username, one)) for one in experiment_ids)


def knows_models(username):
    """Is it remembered that USERNAME may see which models a run has made and used?"""
    return bool(ORDINARY.get((username,)) and MODELS.get(username))


def keep_passwords():
    """Make MLflow's own record of checked passwords end with the change of an account, in all instances."""
    if auth._USER_AUTH_CACHE is not None:
        auth._USER_AUTH_CACHE = Remembered(auth._USER_AUTH_CACHE, ACCOUNTS)


def watch_accounts(engine):
    """Tell all instances when what ENGINE's database says about accounts and permissions has changed."""
    changed = threading.local()

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection, _cursor, statement, *_):
        if written := WRITE.match(statement):
            changed.epochs = getattr(changed, "epochs", set()) | {PERMISSIONS}
            # A new account has nothing that could be remembered, and checking all passwords again is dear.
            if written[1] == "users" and statement.lstrip()[:6].upper() != "INSERT":
                changed.epochs |= {ACCOUNTS}

    @event.listens_for(Session, "after_commit")
    def advance(_session):
        for epoch in getattr(changed, "epochs", ()):
            epoch.advance()
        changed.epochs = set()

    @event.listens_for(Session, "after_rollback")
    def forget(_session):
        changed.epochs = set()


def install():
    """Remember, and forget in time."""
    watch_accounts(auth.store.engine)
    keep_passwords()
    if PERMISSION_SECONDS > 0:
        keep_permissions()
