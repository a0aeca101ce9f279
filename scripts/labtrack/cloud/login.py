"""Logging in to Keystone the way OpenStack's own tools do: clouds.yaml, OS_*, tokens, application credentials."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import requests
import urllib3
from keystoneauth1 import exceptions as keystone
from keystoneauth1.identity import generic, v3
from keystoneauth1.session import Session
from openstack.config import OpenStackConfig
from openstack.config.cloud_region import CloudRegion
from openstack.connection import Connection
from openstack.exceptions import ConfigException
from openstack.warnings import ConfigurationWarning

from labtrack import pemfiles
from labtrack.cloud import answers, cloudsfile
from labtrack.errors import BadInputError, LabtrackError, causes, innermost

AUTH_URL = "OS_AUTH_URL"  # where the shell has it, its variables are the login
USED_WITH_AN_ENTRY = ("OS_TOKEN", "OS_CLIENT_CONFIG_FILE")
TIMEOUT = 20.0  # seconds to wait for a connection, and for each answer
WAYS_OUT = """one of the three ways to a key:
  - log in with a password: a clouds.yaml entry or an openrc file with user name and password
  - with a login token: export OS_TOKEN=$(openstack --os-auth-type v3websso token issue -f value -c id)
  - with a key made elsewhere: openstack ec2 credentials create -f json | labtrack ... --keys -"""
# OpenStack's libraries warn of what is then said in our own words, or makes no difference to a login that succeeds
logging.getLogger("keystoneauth").addHandler(logging.NullHandler())
warnings.filterwarnings("ignore", category=ConfigurationWarning)


class Named(Protocol):
    """What names the credentials: a Lab does."""

    @property
    def cloud(self) -> str:
        """An entry of clouds.yaml."""

    @property
    def clouds_file(self) -> Path | None:
        """Which clouds.yaml; None for the usual places."""


@dataclass(frozen=True)
class Login:
    """A logged-in user in a project."""

    session: Session
    url: str  # of Keystone's v3 interface
    user_id: str
    user_name: str
    project_id: str
    project_name: str
    roles: tuple[str, ...]
    delegated: bool  # by an application credential
    found: str  # where the credentials were
    region: CloudRegion = field(repr=False)

    @property
    def by_shell(self) -> bool:
        """Whether it came from the shell's variables alone, and from no entry of clouds.yaml."""
        return self.found.startswith(AUTH_URL)

    @property
    def by_password(self) -> bool:
        """Whether it was a user's password that logged in, and nothing else."""
        return isinstance(self.session.auth, (generic.Password, v3.Password))

    def connect(self) -> Connection:
        """The cloud's other services, through the same session."""
        region = CloudRegion(self.region.name, self.region.region_name, self.region.config, session=self.session)
        return Connection(config=region)

    def __str__(self) -> str:
        return f"{self.user_name} in project {self.project_name} at {self.url}"


def login(lab: Named, cloud: str | None = None, timeout: float = TIMEOUT) -> Login:
    """Logs in for the lab.

    cloud: an entry of clouds.yaml.  Without it the shell's OS_AUTH_URL and its other OS_* variables are taken when they
    are set, as with every OpenStack tool, and the lab's `lab_cloud` otherwise; an OS_TOKEN alone is
    used in that entry's project.

    Raises BadInputError for what is missing or wrong here, LabtrackError for what the cloud refuses.
    """
    region, found = _region(lab, cloud)
    auth_url = region.config.get("auth", {}).get("auth_url") or ""
    if not auth_url.lower().startswith(("https://", "http://")):
        profile = region.config.get("profile")
        without = f"has no auth_url, and none by its profile {profile}" if profile else "has no auth_url"
        said = f"names no address of Keystone: auth_url is {auth_url!r}" if auth_url else without
        raise BadInputError(f"The login by {found} {said}.", "auth_url: https://..., ending in /v3.")
    if not _has_host(auth_url):
        raise _not_keystone(auth_url, "it has no name of a machine in it that can be read")
    if re.search(r"/v2(\.0)?/?$", auth_url):
        raise _not_keystone(auth_url, "it ends as version 2 did, which no cloud has any more")
    verify, cert = _trusted(region, found)
    _settle_trust(region.config, verify)
    session = Session(verify=verify, cert=cert, timeout=timeout, app_name="labtrack")
    with explained(auth_url):
        plugin = _plugin(region)
        try:
            # with a login in the session, an address that answers 401 would have it wait for its own lock for ever
            access = plugin.get_access(session)
        except keystone.Unauthorized:
            raise _why_unauthorized(region, session, auth_url) from None
        except keystone.MissingAuthPlugin:
            raise _not_keystone(auth_url, "it wants a login (401) before it says what it is") from None
        except keystone.NotFound:
            raise _why_not_found(region, auth_url) from None
    session.auth = plugin
    if not access.project_id:
        raise BadInputError(
            "The login has no project, and a key belongs to one.",
            "add project_name and project_domain_name to the clouds.yaml entry, or set OS_PROJECT_NAME and "
            "OS_PROJECT_DOMAIN_NAME.",
        )
    url = auth_url.rstrip("/")
    return Login(
        session=session,
        url=url if url.endswith("/v3") else f"{url}/v3",
        user_id=access.user_id,
        user_name=access.username,
        project_id=access.project_id,
        project_name=access.project_name,
        roles=tuple(access.role_names),
        delegated=bool(access.application_credential_id),
        found=found,
        region=region,
    )


def _has_host(url: str) -> bool:
    try:
        host = urllib3.util.parse_url(url).host or ""
    except urllib3.exceptions.LocationParseError:
        return False
    return bool(host) and ".." not in host


def _trusted(region: CloudRegion, found: str) -> tuple[Any, Any]:
    """What requests takes as `verify` and `cert`, each file of which is there.  Raises BadInputError."""
    verify, cert = region.get_requests_verify_args()
    if isinstance(verify, str) and not region.config.get("cacert"):
        raise BadInputError(
            f"`verify` of {found} is the text {verify!r}, and true or false is meant.", "write it without quotes."
        )
    for what, name in zip(("cert", "key"), (cert,) if isinstance(cert, str) else cert or ()):
        if not Path(name).is_file():
            raise BadInputError(f"The file {name} is not there, which {found} names.", f"correct `{what}` there.")
    if isinstance(verify, str) and not Path(verify).is_file():
        raise BadInputError(
            f"The CA file {verify}, which the cloud's settings name, is not there.",
            "correct `cacert` in clouds.yaml, or OS_CACERT.",
        )
    if isinstance(verify, str):
        pemfiles.read(Path(verify), pemfiles.CERTIFICATE)
    return verify, cert


def _settle_trust(config: dict[str, Any], verify: bool | str | None) -> None:
    """Writes down which certificates are trusted, as it was resolved, for those who know fewer ways to say it.

    `insecure` is os-client-config's word alone, and the shell's bundles are those of Python's and curl's libraries.
    """
    config["verify"] = bool(verify)
    bundle = next(filter(None, map(os.environ.get, ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))), "")
    if isinstance(verify, str) or (verify and Path(bundle).is_file()):
        config["cacert"] = verify if isinstance(verify, str) else bundle


def _region(lab: Named, cloud: str | None) -> tuple[CloudRegion, str]:
    """The cloud's settings, and where they were found."""
    try:
        if cloud is None and os.environ.get(AUTH_URL):
            config = OpenStackConfig(load_yaml_config=False)
            kind = {"auth_type": "v3token"} if _token() and not os.environ.get("OS_AUTH_TYPE") else {}
            return config.get_one(**kind), f"{AUTH_URL} and the other OS_* variables of the shell"
        name = cloud or lab.cloud
        named = lab.clouds_file or os.environ.get("OS_CLIENT_CONFIG_FILE")
        cloudsfile.check(named, name)
        config = OpenStackConfig(config_files=[str(named)] if named else None, load_envvars=False)
        if name not in config.get_cloud_names():
            raise _no_such_cloud(name, config, named)
        # an entry that a token of the shell completes is not complete by itself
        token = " with OS_TOKEN of the shell" if _token() else ""
        found = f"the entry {name} of {config.config_filename}{token}"
        return config.get_one(cloud=name, validate=not _token()), found
    except keystone.NoMatchingPlugin as error:
        hint = f"pip install the package that brings it, or use {WAYS_OUT}"
        raise BadInputError(f"The way to log in {error.name!r} is not installed here.", hint) from None
    except requests.exceptions.RequestException as error:
        raise BadInputError(
            f"The profile that the entry names can't be looked up: {innermost(error)}.",
            "write the cloud's own auth_url into the entry, in place of `profile`.",
        ) from None
    except TypeError as error:  # of the way to log in, which is given every key of `auth`
        raise BadInputError(
            f"The credentials have a key in `auth` that their way to log in does not know: {error}.",
            "take it out of clouds.yaml, or unset its OS_* variable; `default_domain` is `default_domain_id` here.",
        ) from None
    except AttributeError as error:  # of a list or a text where OpenStack's libraries know a mapping
        raise BadInputError(
            f"The credentials have a setting of another kind than OpenStack's libraries expect: {error}.",
            "compare the entry of clouds.yaml with the one that your cloud's dashboard offers.",
        ) from None
    except (keystone.AuthPluginException, ConfigException) as error:
        raise BadInputError(
            f"The credentials can't be used: {str(error).rstrip('.')}.",
            "complete the clouds.yaml entry or the OS_* variables (an openrc file sets all of them).",
        ) from None


def _no_such_cloud(name: str, config: Any, named: Any) -> BadInputError:
    where = config.config_filename or named or "./clouds.yaml, ~/.config/openstack or /etc/openstack"
    names = [other for other in config.get_cloud_names() if other != "defaults"]
    there = f"there are: {', '.join(names)}" if names else "there is none"
    return BadInputError(
        f"No credentials found: the cloud {name!r} is not in {where} ({there}), and OS_AUTH_URL is not set.",
        f"correct lab_cloud or lab_clouds_file in lab.yml, source an openrc file, or use {WAYS_OUT}",
    )


def _token() -> str:
    return os.environ.get("OS_TOKEN", "")


def _plugin(region: Any) -> Any:
    auth = region.config.get("auth", {})
    if _token() and not os.environ.get(AUTH_URL):
        scope = ("project_id", "project_name", "project_domain_id", "project_domain_name")
        return v3.Token(auth["auth_url"], _token(), **{key: auth[key] for key in scope if key in auth})
    if region.config.get("auth_type", "password") in ("password", "v3password") and not auth.get("password"):
        raise BadInputError(
            f"No complete credentials were found: there is no password for {auth.get('username', 'the user')}.",
            f"put it into clouds.yaml, source an openrc file, or use {WAYS_OUT}",
        )
    return region.get_auth()


def _why_unauthorized(region: Any, session: Session, auth_url: str) -> LabtrackError:
    """Keystone says 401 both to a wrong password and to a project one has no role in: ask again without one."""
    auth = region.config.get("auth", {})
    project = auth.get("project_name") or auth.get("project_id")
    who = auth.get("username") or auth.get("user_id") or "the login"
    plugin = _unscoped(auth, auth_url)
    if plugin and project:
        try:
            plugin.get_access(session)
        except keystone.ClientException:
            pass
        else:
            return LabtrackError(
                f"{who} may log in at {auth_url}, but has no role in the project {project!r} (or it does not exist).",
                "correct the project's name, or ask its owner for the role `member`.",
            )
    what, hint = _refused_secret(auth)
    if not what:
        what, hint = f"wrong user name or password for {who}", "correct the clouds.yaml entry, or source openrc again."
    return LabtrackError(f"Keystone at {auth_url} refuses the login (401): {what}.", hint)


def _why_not_found(region: Any, auth_url: str) -> LabtrackError:
    """A token or an application credential that Keystone does not know is a 404, as is a wrong address."""
    what, hint = _refused_secret(region.config.get("auth", {}))
    if what:
        return LabtrackError(f"Keystone at {auth_url} refuses the login (404): {what}.", hint)
    return BadInputError(
        f"There is no Keystone at {auth_url} (404).", "auth_url must be Keystone's address and end in /v3."
    )


def _refused_secret(auth: dict[str, Any]) -> tuple[str, str]:
    if _token() or "token" in auth:
        return "the token is wrong or has expired", "log in again and set OS_TOKEN anew."
    if "application_credential_id" in auth or "application_credential_name" in auth:
        return "the application credential is wrong, expired or deleted", "make a new one in the dashboard."
    return "", ""


def _unscoped(auth: dict[str, Any], auth_url: str) -> Any:
    url = auth_url.rstrip("/")
    url = url if url.endswith("/v3") else f"{url}/v3"
    if _token() or "token" in auth:
        return v3.Token(url, _token() or auth["token"], unscoped=True)
    user = ("username", "user_id", "password", "user_domain_id", "user_domain_name")
    if "password" in auth:
        return v3.Password(url, unscoped=True, **{key: auth[key] for key in user if key in auth})
    return None


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns what keystoneauth raises into words; 401, 403 and 404 are left to those who know what was asked."""
    try:
        yield
    except (keystone.Unauthorized, keystone.Forbidden, keystone.NotFound):
        raise
    except keystone.AuthPluginException as error:
        raise BadInputError(
            f"No complete credentials were found: {error}", "complete the clouds.yaml entry or the OS_* variables."
        ) from None
    except keystone.HttpError as error:
        raise _answered(url, error) from None
    except (keystone.ConnectionError, keystone.DiscoveryFailure) as error:
        raise _connection(url, error) from None


def _answered(url: str, error: keystone.HttpError) -> LabtrackError:
    """What Keystone refuses stays refused; what it can't do now, it may do in a minute."""
    what = f"Keystone at {url} answered {error.http_status}: {' '.join(str(error.message).split())[:300]}"
    if answers.may_pass(error.http_status):
        return LabtrackError(what, "try again in a minute; if it stays, look at the cloud's status page.")
    hint = "correct the login; with a user name and a password go user_domain_name, project_name, project_domain_name."
    return BadInputError(what, hint)


def _not_keystone(url: str, why: str) -> BadInputError:
    """Something answers, or would, and is no Keystone of today."""
    hint = "auth_url ends in /v3, with nothing behind that; the dashboard's openrc file has it."
    return BadInputError(f"{url} is not Keystone's address: {why}.", hint)


def _connection(url: str, error: BaseException) -> LabtrackError:
    led = causes(error)

    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in led)

    if not any_of(keystone.ConnectionError, requests.exceptions.RequestException):
        return _not_keystone(url, innermost(error))
    if any_of(keystone.SSLError, requests.exceptions.SSLError):
        return LabtrackError(
            f"Keystone at {url} shows a certificate that is not trusted here: {innermost(error)}.",
            "name the CA's file as `cacert` in clouds.yaml or as OS_CACERT; a public cloud needs none, so look at "
            "auth_url, the clock (`date`), and whether a proxy sits in between.",
        )
    if any_of(keystone.ConnectTimeout, requests.exceptions.Timeout):
        return LabtrackError(
            f"Keystone at {url} does not answer in time.", "check the network (VPN? firewall?) and try again."
        )
    return LabtrackError(
        f"Keystone at {url} can't be reached: {innermost(error)}.",
        "check auth_url in clouds.yaml (or OS_AUTH_URL), the network and the VPN.",
    )
