"""A run or a logged model that was recorded elsewhere keeps its id here, where that is free.

`labtrack sync` names the recorded id and the recording in tags of the request that makes a copy.  MLflow draws a new id
all the same, so that links, `MLmodel` files and notes with the old one lead nowhere, and a create whose answer is lost
can't be sent again.  Here the copy gets the recorded id, and the same create again gives the same copy.  Where another
one has the id (the copy in another experiment, somebody else's run), MLflow draws one as before.  See
docs/decisions/0026-ids-that-stay.md.
"""

import contextvars
import re
import types
import uuid

from mlflow.exceptions import MlflowException
from mlflow.store.tracking import sqlalchemy_store
from mlflow.store.tracking.dbmodels.models import SqlLoggedModel, SqlRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from labtrack_server.patching import replace

# The tags that scripts/labtrack/tracking/names.py has sync write.
STORE = "labtrack.source_store"
RUN = "labtrack.source_run_id"
MODEL = "labtrack.source_model_id"
IDS = {RUN: re.compile(r"[0-9a-f]{32}"), MODEL: re.compile(r"m-[0-9a-f]{32}")}

_recorded = contextvars.ContextVar("labtrack_recorded_id", default=None)


def recorded(tags, name):
    """The tags that name a recording and its NAME, the tag with the id, where there is one to keep; else None."""
    wanted = {tag: tags.get(tag) or "" for tag in (name, STORE)}
    return wanted if wanted[STORE] and IDS[name].fullmatch(wanted[name]) else None


def draw():
    """In the place of uuid4 in MLflow's store: the recorded id, once, where there is one to keep."""
    kept = _recorded.get()
    _recorded.set(None)
    return kept or uuid.uuid4()


def keep(name, table, columns, given):
    """Make a store's method that creates keep the recorded id.

    name: of the tag with the id.  table, columns: where rows are, and what a tag's name and value are called there.
    given: (store, id) -> what MLflow answers of one.
    """
    key, value = columns

    def there(store, wanted, experiment_id):
        """What has the id: the copy itself, False for something else, None for nothing."""
        with store.ManagedSessionMaker() as session:
            if (found := session.get(table, wanted[name])) is None:
                return None
            tags = {getattr(tag, key): getattr(tag, value) for tag in found.tags}
            same = str(found.experiment_id) == str(experiment_id) and wanted.items() <= tags.items()
        return same and given(store, wanted[name])

    def keeping(original):
        def create(self, *arguments, **named):
            wanted = recorded({tag.key: tag.value for tag in named.get("tags") or ()}, name)
            if arguments or wanted is None:
                return original(self, *arguments, **named)
            if (found := there(self, wanted, named["experiment_id"])) is not None:
                return found or original(self, **named)
            token = _recorded.set(uuid.UUID(wanted[name].removeprefix("m-")))
            try:
                return original(self, **named)
            except MlflowException:
                # perhaps another request with this id was quicker by a moment
                if (found := there(self, wanted, named["experiment_id"])) is None:
                    raise
                return found or original(self, **named)
            finally:
                _recorded.reset(token)

        return create

    return keeping


def install():
    """Keep the ids of runs and of logged models."""
    sqlalchemy_store.uuid = types.SimpleNamespace(**{**vars(uuid), "uuid4": draw})
    run = keep(RUN, SqlRun, ("key", "value"), lambda store, number: store.get_run(number))
    model = keep(
        MODEL,
        SqlLoggedModel,
        ("tag_key", "tag_value"),
        lambda store, number: store.get_logged_model(number, allow_deleted=True),
    )
    replace(SqlAlchemyStore, "create_run", run)
    replace(SqlAlchemyStore, "create_logged_model", model)
