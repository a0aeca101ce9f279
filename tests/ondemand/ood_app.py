"""The app as the dashboard and a job run it: templates rendered by Ruby, and the job's script around them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "ondemand"
RENDER = Path(__file__).with_name("render.rb")
WAITS = 60.0  # seconds for what takes a few on two busy cores

# What the dashboard puts around the app's files, in our words: the helpers, the order, the ends.
_JOB = """#!/bin/bash
cd {work}
export host port
create_yml () {{ (umask 077; echo -e "{params}" > connection.yml); }}
clean_up () {{
  echo "Cleaning up..."
  [[ -e clean.sh ]] && source clean.sh
  [[ $SCRIPT_PID ]] && pkill -P $SCRIPT_PID || :
  pkill -P $$
  exit ${{1:-0}}
}}
port_used () {{ (exec 3<> "/dev/tcp/${{1%:*}}/${{1#*:}}") 2> /dev/null; }}
find_port () {{ echo {port}; }}
wait_until_port_used () {{
  local tries
  for ((tries = 0; tries < $2 * 2; tries++)); do port_used "$1" && return 0; sleep 0.5; done
  return 1
}}
create_passwd () {{ tr -cd '[:alnum:]' < /dev/urandom 2> /dev/null | head -c "${{1:-8}}"; }}
export -f port_used find_port wait_until_port_used create_passwd
host={host}
[[ -e before.sh ]] && source before.sh
echo "Script starting..."
{timeout} ./script.sh &
SCRIPT_PID=$!
[[ -e after.sh ]] && source after.sh
create_yml
wait $SCRIPT_PID || clean_up 1
clean_up
"""


def ruby() -> str:
    found = shutil.which("ruby")
    if not found:
        pytest.skip("needs ruby (apt install ruby)")
    return found


def render(file: str, kind: str, context: Mapping[str, Any] | None = None, **more: Any) -> str:
    """A template of the app, rendered.  more: `etc` for the site's settings, `staged_root` for a card."""
    return text_of(render_all([{"file": file, "kind": kind, "context": context or {}, **more}])[0])


def render_all(asked: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Templates of the app by one Ruby: each with its `text` or `error`."""
    whole = [{**one, "file": str(APP / one["file"])} for one in asked]
    done = subprocess.run(
        [ruby(), "-W0", RENDER], input=json.dumps(whole, default=str).encode(), stdout=subprocess.PIPE, check=True
    )
    return list(json.loads(done.stdout))


def text_of(rendered: Mapping[str, str]) -> str:
    """What came out.  Raises RuntimeError with what Ruby says where nothing did."""
    if "error" in rendered:
        raise RuntimeError(rendered["error"])
    return rendered["text"]


def site(folder: Path, text: str) -> Path:
    """A folder like /etc/ood/config with the site's settings in it."""
    folder.mkdir(exist_ok=True)
    (folder / "labtrack.yml").write_text(text)
    return folder


def form(etc: Path) -> dict[str, Any]:
    return yaml.safe_load(render("form.yml.erb", "form", etc=etc))


def answered(etc: Path, **answers: str) -> dict[str, str]:
    """The context after somebody has sent the form: what they gave, what the form has at first, what is fixed."""
    given = form(etc)
    context = {}
    for name in given["form"]:
        attribute = given["attributes"].get(name, {})
        if not isinstance(attribute, dict):
            context[name] = str(attribute)
            assert name not in answers
        elif "options" in attribute:
            context[name] = str(attribute["options"][0][1])
        else:
            context[name] = str(attribute.get("value", ""))
    unknown = set(answers) - set(context)
    assert not unknown, f"the form does not ask for {unknown}"
    return {**context, **answers}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(holds: Callable[[], object], seconds: float = WAITS) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)
    return found


# Ends the job when the tests are killed: a session would go on for its hours.
_GUARD = 'trap "kill -TERM -- -$1; exit" TERM; while kill -0 "$1" 2>/dev/null; do sleep 1 & wait $!; done'
WITH_THE_TESTS = ("setpriv", "--pdeathsig", "TERM")  # runs a program that ends when they do


@dataclass
class Job:
    """A session: its staged folder and the job that runs it.  tmp: the job's TMPDIR."""

    staged: Path
    tmp: Path
    port: int
    process: subprocess.Popen[bytes]
    guard: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.staged / "output.log").read_text()

    @property
    def running(self) -> bool:
        """Whether the card would have its button; fails where the job has ended before."""
        assert self.process.poll() is None or (self.staged / "connection.yml").exists(), self.log + self.error
        return (self.staged / "connection.yml").exists()

    @property
    def connection(self) -> dict[str, Any]:
        return yaml.safe_load((self.staged / "connection.yml").read_text())

    @property
    def error(self) -> str:
        file = self.staged / "labtrack_error.txt"
        return file.read_text() if file.exists() else ""

    def card(self, name: str) -> str:
        return render(name, "card", staged_root=self.staged)

    def processes(self) -> list[str]:
        """The command lines of what still runs for the session."""
        found = []
        for one in Path("/proc").glob("[0-9]*"):
            try:
                environment, line = (one / "environ").read_bytes(), (one / "cmdline").read_bytes()
            except OSError:
                continue
            if f"TMPDIR={self.tmp}".encode() in environment.split(b"\0") and line:
                found.append(line.replace(b"\0", b" ").decode())
        return found

    def nothing_left(self) -> bool:
        return not self.processes() and not list(self.tmp.iterdir())

    def end(self, number: int = signal.SIGTERM) -> int:
        """As the scheduler ends a job: all of its processes are told."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        return self.process.wait(WAITS)


def staged(folder: Path, context: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
    """The job's folder with the app's template rendered into it, and the options of the submission."""
    folder.mkdir(mode=0o700)
    files = sorted((APP / "template").iterdir())
    templates = [one for one in files if one.suffix == ".erb"]
    asked = [{"file": f"template/{one.name}", "kind": "template", "context": context} for one in templates]
    rendered = render_all([*asked, {"file": "submit.yml.erb", "kind": "submit", "context": context}])
    *made, submission = map(text_of, rendered)
    texts = {**{one: one.read_text() for one in files}, **dict(zip(templates, made))}
    for file, text in texts.items():
        to = folder / file.name.removesuffix(".erb")
        to.write_text(text, newline="")
        to.chmod(file.stat().st_mode)
    return folder, yaml.safe_load(submission)


def job_script(place: Path | str, options: Mapping[str, Any], host: str, port: int) -> str:
    """What the dashboard has the scheduler run.  place: the staged folder, as the job sees it."""
    names = [*options["conn_params"], "host", "port", "password"]
    params = "\\n".join(f"{one}: ${one}" for one in names)
    return _JOB.format(work=place, params=params, port=port, host=host, timeout=f"timeout {options['timeout']}")


def submitted(
    folder: Path, context: Mapping[str, str], *, port: int | None = None, host: str = "127.0.0.1", **env: str
) -> Job:
    """Stages and starts a session.  env: variables of the job."""
    folder.mkdir(exist_ok=True)
    place, submission = staged(folder / "staged", context)
    tmp, port = folder / "tmp", port or free_port()
    tmp.mkdir()
    script = place / "job_script_content.sh"
    script.write_text(job_script(place, submission["batch_connect"], host, port))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
    with (place / "output.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place,
            env={**environment, "TMPDIR": str(tmp), **env}, start_new_session=True,
        )  # fmt: skip
    guard = subprocess.Popen([*WITH_THE_TESTS, "bash", "-c", _GUARD, "guard", str(process.pid)])
    return Job(place, tmp, port, process, guard)
