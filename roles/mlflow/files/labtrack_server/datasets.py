"""Search in evaluation datasets without naming experiments: `mlflow.genai.datasets.search_datasets()`.

MLflow refuses it to everybody but admins, because the answer would list the datasets of all.  Here it lists those whose
experiments the account may read, all of them, which is what MLflow asks for reading one.
"""

from flask import has_request_context
from mlflow.server import auth
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from labtrack_server.patching import replace, replace_in


def may_search():
    """Any account may search: what it finds is what it may read."""
    named = auth._experiment_ids_from_request()
    return not named or auth.validate_can_search_evaluation_datasets()


def install():
    """Open the search, and narrow what it finds."""

    def search(original):
        def narrowed(self, *arguments, **named):
            found = original(self, *arguments, **named)
            if has_request_context() and not auth.sender_is_admin():
                username = auth.authenticate_request().username
                found[:] = [
                    row
                    for row in found
                    if (ids := self.get_dataset_experiment_ids(row.dataset_id))
                    and all(auth._get_experiment_permission(number, username).can_read for number in ids)
                ]
            return found

        return narrowed

    replace(SqlAlchemyStore, "search_datasets", search)
    replace_in([auth.BEFORE_REQUEST_VALIDATORS], auth.validate_can_search_evaluation_datasets, may_search)
