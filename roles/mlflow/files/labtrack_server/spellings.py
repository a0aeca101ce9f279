"""One spelling of an experiment's number.

MLflow looks for permissions by an id's text, and for rows by the number that Python's int() makes of it.  So "01", " 1"
or "+1" found what a DENY on experiment 1 had closed: nobody has said anything about "01", and the default may read.
Here only the spelling that MLflow itself prints has any permission.
"""

import inspect
import re

from mlflow.server import auth

from labtrack_server.patching import replace

PLAIN = re.compile(r"0|[1-9][0-9]{0,18}")


def plain(resource_type, resource_id):
    """Is RESOURCE_ID spelled as MLflow prints it, where it is an experiment's?"""
    return (
        resource_type != auth.RESOURCE_TYPE_EXPERIMENT
        or resource_id in (None, "*")
        or PLAIN.fullmatch(str(resource_id)) is not None
    )


def _named(anchor, requirements):
    """All (type, id) that a decision is about."""
    yield tuple(anchor)
    for one in requirements:
        yield one[:2]
        yield from (key[:2] for key in one.fallback_if_no_grant)


def install():
    """Give no permission by another spelling."""

    def authorize(original):
        def decide(username, anchor, requirements):
            return all(plain(*key) for key in _named(anchor, requirements)) and original(username, anchor, requirements)

        return decide

    def retains(original):
        def retained(self, resource_type, resource_id=None):
            return plain(resource_type, resource_id) and original(self, resource_type, resource_id)

        return retained

    def permission(original):
        names = inspect.signature(original)

        def of_role(*given, **more):
            named = names.bind(*given, **more).arguments
            keys = [(named["resource_type"], named["resource_key"])]
            if named["workspace_label"] == auth.RESOURCE_TYPE_EXPERIMENT:  # a part of an experiment
                keys.append((auth.RESOURCE_TYPE_EXPERIMENT, named["workspace_lookup_id"]))
            return original(*given, **more) if all(plain(*key) for key in keys) else lambda: auth.NO_PERMISSIONS

        return of_role

    replace(auth, "authorize", authorize)
    replace(auth.RetentionGate, "retains", retains)
    replace(auth, "_role_permission_for", permission)
