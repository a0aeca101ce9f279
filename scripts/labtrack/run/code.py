"""What a job runs: the command, the code and the surroundings, as tags, without secrets."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labtrack.local import git
from labtrack.recorder.scheduler import LONGEST, Job
from labtrack.run.masking import environment_secrets, mask, mask_command, mask_known

COMMAND, IMAGE, MODULES, HOST, FOLDER = (
    "labtrack.command", "labtrack.container", "labtrack.modules", "labtrack.host", "labtrack.cwd",
)  # fmt: skip
_LARGEST_DIFF = 2**20  # bytes
_IMAGES = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "APPTAINER_NAME", "SINGULARITY_NAME", "CONTAINER_IMAGE")
_IMAGE_OPTION = re.compile(r"--container-image(?:=|$)")
_IMAGE_FILE = re.compile(r"(?i).+\.(sif|sqsh|img)|(docker|oras|library)://.+")
_SCRIPT = re.compile(r".+\.(py|sh|R|jl|ipynb)")


@dataclass(frozen=True)
class Facts:
    """tags: for every top-level run of the job.  diff: what is not committed, cut where it is very long."""

    tags: Mapping[str, str]
    diff: str = ""


def tags_of(job: Job, command: Sequence[str], env: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The tags that cost no look at a file system.  folder: where the command is run."""
    tags = {
        **job.all_tags,
        COMMAND: mask_command(command, env),
        HOST: socket.gethostname(),
        FOLDER: str(folder),
        "mlflow.source.type": "JOB",
    }
    script = next((one for one in command if _SCRIPT.fullmatch(one)), "")
    if script:
        tags["mlflow.source.name"] = script
    image = next((env[name] for name in _IMAGES if env.get(name)), "") or image_in(command)
    if image:
        tags[IMAGE] = image
    if env.get("LOADEDMODULES"):
        tags[MODULES] = ", ".join(filter(None, env["LOADEDMODULES"].split(":")))
    secrets = environment_secrets(env)
    return {name: mask(value, secrets)[:LONGEST] if name != COMMAND else value for name, value in tags.items()}


def with_code(tags: Mapping[str, str], env: Mapping[str, str], folder: Path) -> Facts:
    """The tags, and the state of the repository that the folder is in."""
    state = git.state(folder)
    secrets = environment_secrets(env)
    diff = mask_known(state.diff[: 2 * _LARGEST_DIFF], secrets)
    if len(diff.encode()) > _LARGEST_DIFF:
        kept = diff.encode()[:_LARGEST_DIFF].decode("utf-8", "ignore")
        diff = f"{kept}\n... cut: the diff has {len(state.diff):,} characters\n"
    return Facts({**tags, **state.tags()}, diff)


def image_in(command: Sequence[str]) -> str:
    """The container image that a command names: of apptainer, of srun's pyxis, or of docker's address."""
    for place, word in enumerate(command):
        if _IMAGE_OPTION.match(word):
            return word.partition("=")[2] or (command[place + 1] if place + 1 < len(command) else "")
    starts = [place for place, word in enumerate(command) if os.path.basename(word) in ("apptainer", "singularity")]  # noqa: PTH119
    return next((word for start in starts for word in command[start + 1 :] if _IMAGE_FILE.fullmatch(word)), "")
