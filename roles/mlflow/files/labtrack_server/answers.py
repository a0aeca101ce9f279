"""What a refusal says, and whose grants a list shows.

A 403 names the owner and the way out, as far as the account may read the thing at all; a 401 is MLflow's JSON too.
Lists of roles and grants show the asker's own; an admin sees all.
"""

import contextlib
import json
from http import HTTPStatus

from flask import Response, jsonify, request
from mlflow.exceptions import MlflowException
from mlflow.server import auth, handlers
from mlflow.server.auth.db.models import SqlRole, SqlRolePermission, SqlUser, SqlUserRoleAssignment
from starlette.responses import JSONResponse

from labtrack_server.patching import replace, replace_in

WRONG_LOGIN = (
    "User name and password are needed, or are wrong. To fix: source your mlflow_env.sh again (it sets "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD), or ask the lab's admin for a new one."
)
NO_ACCESS = "This account may not do this. To fix: ask the owner, or the lab's admin, for the permission."


def owner(resource_type, resource_id):
    """The account that has had MANAGE on a resource for the longest; None where there is none."""
    with auth.store.ManagedSessionMaker(read_only=True) as session:
        found = (
            session.query(SqlUser.username)
            .join(SqlUserRoleAssignment, SqlUserRoleAssignment.user_id == SqlUser.id)
            .join(SqlRole, SqlRole.id == SqlUserRoleAssignment.role_id)
            .join(SqlRolePermission, SqlRolePermission.role_id == SqlRole.id)
            .filter(
                SqlRolePermission.resource_type == resource_type,
                SqlRolePermission.resource_pattern == str(resource_id),
                SqlRolePermission.permission == "MANAGE",
            )
            .order_by(SqlRolePermission.id)
            .first()
        )
    return found[0] if found else None


def _requested():
    """The parameters of the request, wherever they are."""
    body = request.get_json(force=True, silent=True) if request.method != "GET" else None
    return {**request.args.to_dict(), **(body if isinstance(body, dict) else {}), **(request.view_args or {})}


def _experiment_of(asked):
    """Number of the experiment that a request is about, and how to name the thing in it."""
    store = handlers._get_tracking_store()
    trace_id = asked.get("trace_id") or asked.get("request_id")
    run_id = asked.get("run_id") or asked.get("run_uuid")
    if run_id:
        return store.get_run(run_id).info.experiment_id, f"Run {run_id} is in experiment"
    if model_id := asked.get("model_id"):
        return store.get_logged_model(model_id).experiment_id, f"Logged model {model_id} is in experiment"
    if trace_id:
        return store.get_trace_info(trace_id).experiment_id, f"Trace {trace_id} is in experiment"
    many = asked.get("experiment_ids")
    return asked.get("experiment_id") or (many[0] if isinstance(many, list) and many else None), "Experiment"


def about_experiment(username, experiment_id, what="Experiment"):
    """Why USERNAME may not do something in an experiment.  Names nothing that the account may not read."""
    experiment_id = str(experiment_id)
    if not auth._get_experiment_permission(experiment_id, username).can_read:
        return NO_ACCESS
    experiment = handlers._get_tracking_store().get_experiment(experiment_id)
    whose = owner("experiment", experiment_id)
    which = ", which belongs to" if what != "Experiment" else " belongs to"
    return (
        f"{what} '{experiment.name}' (id {experiment_id}){which} {whose or 'nobody'}; you may read it. To fix: use "
        f"an experiment of your own (mlflow.set_experiment(...)), ask {whose or 'the admin'} for EDIT, or ask the "
        "admin to add the name to lab_shared_experiments."
    )


def about_model(username, name):
    """Why USERNAME may not do something with a registered model or prompt."""
    if not auth._get_registered_model_or_prompt_permission(name).can_read:
        return NO_ACCESS
    prompt = handlers._get_model_registry_store().get_registered_model(name)._is_prompt()
    kind, whose = ("Prompt", owner("prompt", name)) if prompt else ("Model", owner("registered_model", name))
    return (
        f"{kind} '{name}' belongs to {whose or 'nobody'}; you may read it. To fix: register it under a name of your "
        f"own, or ask {whose or 'the admin'} for EDIT."
    )


def reason():
    """Why the request at hand was refused."""
    asked = _requested()
    username = auth.authenticate_request().username
    # Looking for the reason must not turn a refusal into another error: what is not found has no owner.
    with contextlib.suppress(MlflowException, TypeError, ValueError, AttributeError):
        experiment_id, what = _experiment_of(asked)
        if experiment_id:
            return about_experiment(username, experiment_id, what)
        if isinstance(asked.get("name"), str) and (
            "registered-models/" in request.path or "model-versions/" in request.path
        ):
            return about_model(username, asked["name"])
    return NO_ACCESS


def words(code, message):
    """A body as MLflow's clients read it."""
    return json.dumps({"error_code": code, "message": message})


def forbidden():
    """The answer to what an account may not do."""
    return Response(words("PERMISSION_DENIED", reason()), 403, mimetype="application/json")


def unauthenticated():
    """The answer to a request without a valid login."""
    basic = {"WWW-Authenticate": 'Basic realm="mlflow"'}
    return Response(words("UNAUTHENTICATED", WRONG_LOGIN), 401, basic, mimetype="application/json")


def native(content, status_code=200, headers=None):
    """The same for the routes that Flask does not serve."""
    code, message = {
        401: ("UNAUTHENTICATED", WRONG_LOGIN),
        403: ("PERMISSION_DENIED", NO_ACCESS if content == "Permission denied" else content),
    }.get(int(status_code), ("INVALID_PARAMETER_VALUE", content))
    return JSONResponse({"error_code": code, "message": message}, int(status_code), headers)


def basic_auth(original):
    """Take a login of another kind (Bearer, Digest), or one that no account can have, for no login."""

    def authenticate():
        login = request.authorization
        if login is None or login.type != "basic" or not login.username or not login.password:
            return unauthenticated()
        if "\x00" in login.username + login.password:
            return unauthenticated()
        return original()

    return authenticate


def _is_admin():
    return auth.store.get_user(auth.authenticate_request().username).is_admin


def _own_roles():
    return auth.store.list_user_roles(auth.store.get_user(auth.authenticate_request().username).id)


def may_view_role():
    """May the account see the role that the request names?  Its own, and an admin any."""
    return _is_admin() or str(auth._request_params().get("role_id")) in {str(role.id) for role in _own_roles()}


def _list_roles(original):
    def own_only():
        return original() if _is_admin() else jsonify({"roles": [role.to_json() for role in _own_roles()]})

    return auth.catch_mlflow_exception(own_only)


def _list_users(original):
    def without_grants():
        answer = original()
        if answer.status_code != HTTPStatus.OK or _is_admin():
            return answer
        own = auth.authenticate_request().username
        rows = answer.get_json()["users"]
        # The pages that hand out reviews need the names.
        return jsonify({"users": [row if row["username"] == own else {"username": row["username"]} for row in rows]})

    return auth.catch_mlflow_exception(without_grants)


def install(app):
    """Put the answers in MLflow's place, after its routes are there."""
    replace(auth, "make_forbidden_response", lambda _: forbidden)
    replace(auth, "make_basic_auth_response", lambda _: unauthenticated)
    replace(auth, "PlainTextResponse", lambda _: native)
    replace(auth, "authenticate_request_basic_auth", basic_auth)
    validators = [auth.BEFORE_REQUEST_VALIDATORS]
    replace_in(validators, auth.validate_can_view_roles, may_view_role)
    replace_in(validators, auth.validate_can_list_roles, auth._allow_authenticated)
    for view, wrap in ((auth.list_roles, _list_roles), (auth.list_users, _list_users)):
        replace_in([app.view_functions], view, wrap(view))
