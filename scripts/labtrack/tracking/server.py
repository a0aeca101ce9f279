"""The tracking server over REST: accounts, and what a checker asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from labtrack.errors import LabtrackError, innermost
from labtrack.tracking import answers
from labtrack.tracking.credentials import PASSWORD, USER, Credentials
from labtrack.tracking.transport import Transport

TIMEOUT = 30.0  # seconds
USERS = "/api/2.0/mlflow/users"


@dataclass
class Server:
    """A tracking server and a login.

    ca_file: the CA of its certificate; None for what the system trusts.
    """

    url: str
    user: str
    password: str = field(repr=False)
    ca_file: Path | None = None
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        ca = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(self.ca_file)} if self.ca_file else {}
        credentials = Credentials({USER: self.user, PASSWORD: self.password, **ca})
        self._transport = Transport(self.url, credentials, self.timeout, self.timeout)

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        """One request, whatever the answer's status.  Raises LabtrackError when no answer comes."""
        try:
            answer = self._transport.send(method, path, **more)
        except requests.exceptions.SSLError as error:
            raise LabtrackError(
                f"{self.url} shows a certificate that is not trusted here: {innermost(error)}.",
                "with lab_certificate: selfsigned, run playbooks/deploy.yml, which fetches the lab's CA; "
                "else look at the certificate's name and date.",
            ) from None
        except requests.exceptions.Timeout:
            raise LabtrackError(
                f"{self.url} did not answer within {self.timeout:.0f} s.", "`labtrack doctor` looks closer."
            ) from None
        except requests.exceptions.RequestException as error:
            raise answers.unreached(error, self.url) or LabtrackError(
                f"{self.url} can't be reached: {innermost(error)}.",
                "is the server deployed, does its name resolve (`getent hosts`), is port 443 open?",
            ) from None
        return answer

    def as_user(self, user: str, password: str) -> Server:
        """The same server with another login."""
        return Server(self.url, user, password, self.ca_file, self.timeout)

    def call(self, method: str, path: str, doing: str, **more: Any) -> Any:
        """The JSON that a request is answered with.  doing: what it is for, told when it is refused (LabtrackError)."""
        answer = self.ask(method, path, **more)
        self._expect(answer, doing)
        return answer.json()

    def find(self, path: str, doing: str, **more: Any) -> Any:
        """The JSON of something that may not be there: None when the server says so."""
        answer = self.ask("GET", path, **more)
        if answer.status_code == requests.codes.not_found and _code(answer) == "RESOURCE_DOES_NOT_EXIST":
            return None
        self._expect(answer, doing)
        return answer.json()

    def login_works(self) -> bool:
        """Whether the server accepts user and password."""
        answer = self.ask("GET", f"{USERS}/current")
        if answer.status_code == requests.codes.unauthorized:
            return False
        self._expect(answer, "asking who is logged in")
        return True

    def has_user(self, name: str) -> bool:
        """Whether there is an account.  The login must be an admin's."""
        return self.find(f"{USERS}/get", f"asking for the account {name}", params={"username": name}) is not None

    def users(self) -> list[str]:
        """The names of all accounts.  The login must be an admin's."""
        answer = self.ask("GET", f"{USERS}/list")
        self._expect(answer, "asking for the accounts")
        return [str(user["username"]) for user in answer.json()["users"]]

    def create_user(self, name: str, password: str) -> None:
        """Makes an account."""
        self.call(
            "POST", f"{USERS}/create", f"making the account {name}", json={"username": name, "password": password}
        )

    def set_password(self, name: str, password: str) -> None:
        """Gives an account another password."""
        body = {"username": name, "password": password}
        self._expect(self.ask("PATCH", f"{USERS}/update-password", json=body), f"setting the password of {name}")

    def delete_user(self, name: str) -> bool:
        """Deletes an account; False when there was none.  Its runs stay."""
        answer = self.ask("DELETE", f"{USERS}/delete", json={"username": name})
        if answer.status_code == requests.codes.not_found and _code(answer) == "RESOURCE_DOES_NOT_EXIST":
            return False
        self._expect(answer, f"deleting the account {name}")
        return True

    def _expect(self, answer: requests.Response, doing: str) -> None:
        status = answer.status_code
        if status < 300 and not answers.is_page(answer):  # noqa: PLR2004
            return
        if status == requests.codes.unauthorized:
            raise LabtrackError(
                f"{self.url} refuses the login of {self.user} (401), while {doing}.",
                "secret_mlflow_admin_password in secrets.yml is not what the server was deployed with: "
                "run playbooks/deploy.yml again.",
            )
        why = answers.unusable(answer, self.url, f"the login of {self.user}")
        if why is not None and status != requests.codes.not_found:
            raise why
        if status == requests.codes.forbidden:
            hint = "the account must be an MLflow admin; a Host or Origin check may stand behind it too."
            raise LabtrackError(f"{self.url} forbids {doing} to {self.user} (403).", hint)
        if status == requests.codes.not_found:
            hint = "is it labtrack's own server? A server without accounts (--app-name basic-auth) has no users."
            raise LabtrackError(f"{self.url} knows no accounts (404), while {doing}.", hint)
        said = answers.code_and_words(answer)[1]
        hint = "try again in a minute, then look at the server: `journalctl -u 'mlflow@*'`."
        raise LabtrackError(f"{self.url} answered {status}, while {doing}: {said}", hint)


def _code(answer: requests.Response) -> str:
    return answers.code_and_words(answer)[0]
