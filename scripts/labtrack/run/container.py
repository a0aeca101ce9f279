"""`labtrack run --container IMAGE`: the command inside an image that sees the folder which is recorded into."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labtrack.errors import BadInputError
from labtrack.run.lending import is_python

PROGRAMS = ("apptainer", "singularity")
_LAUNCHERS = ("srun", "mpirun", "mpiexec", "mpiexec.hydra", "prun")  # start the command on nodes that have the program
_GPUS = {"/dev/nvidiactl": "--nv", "/dev/kfd": "--rocm"}


@dataclass(frozen=True)
class Container:
    """An image and the program that runs it, by its name: on another node it may be elsewhere."""

    program: str
    image: str

    def inside(self, command: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
        """A command as it is run in the image.  folders: seen inside by the same paths."""
        options = [one for device, one in _GPUS.items() if Path(device).exists()]
        for folder in folders:
            options += ["--bind", str(folder)]
        return [self.program, "exec", *options, self.image, *command]

    def wrapped(self, command: Sequence[str], folders: Sequence[Path], env: Mapping[str, str]) -> list[str]:
        """The same of what the user wrote: `srun` itself stays outside."""
        start = _start(command, env)
        return [*command[:start], *self.inside(command[start:], folders)]


def container_of(image: str, command: Sequence[str], env: Mapping[str, str]) -> Container:
    """The container for an image.  Raises BadInputError where there is no program, no image, or no place for it."""
    program = next((one for one in PROGRAMS if shutil.which(one, path=env.get("PATH"))), "")
    if not program:
        raise BadInputError(
            f"--container {image}: neither apptainer nor singularity is on the PATH.", "module load apptainer"
        )
    _start(command, env)
    if "://" in image:
        return Container(program, image)
    path = Path(image).expanduser().absolute()  # what is asked in it is asked elsewhere
    if not path.exists():
        raise BadInputError(f"--container {image}: there is no such image.", "is the path right, seen from this node?")
    return Container(program, str(path))


def bindable(folder: Path) -> bool:
    """Whether apptainer can be told the folder: in its list of folders, `:` and `,` mean something else."""
    return not {":", ","} & set(str(folder))


def _start(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Where in the command the program is that belongs into the image: behind a launcher and its options."""
    if os.path.basename(command[0]) not in _LAUNCHERS:  # noqa: PTH119
        return 0
    for place, word in enumerate(command[1:], 1):
        if word.startswith("-"):
            continue
        if is_python(word) or shutil.which(word, path=env.get("PATH")):
            return place
    raise BadInputError(
        f"--container: which word of `{' '.join(command)}` is the program that belongs into the image?",
        f"write it yourself: labtrack run -- {command[0]} ... apptainer exec --bind FOLDER IMAGE PROGRAM ...",
    )
