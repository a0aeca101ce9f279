"""`labtrack lab export` and `import`: the same file, carried by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from labtrack import files
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import Lab
from labtrack.labcopy import archive, content, frombackup, placing
from labtrack.labcopy.content import Mark

_HEAD = b"$ANSIBLE_VAULT;"


@dataclass(frozen=True)
class Brought:
    """What an import did: files that were written, those that were there already, where older ones were put aside."""

    export: archive.Export
    written: tuple[str, ...]
    same: tuple[str, ...]
    aside: Path | None


def export(lab: Lab, output: Path, *, force: bool = False) -> content.Content:
    """Writes all that the lab's next run needs and git does not have to one encrypted file, mode 0600.

    force: write over a file that is no export.  Raises BadInputError where there is nothing to export, or the file
    can't be there, LabtrackError when the disk is full.
    """
    output = output.expanduser().absolute()
    if output.is_dir():
        raise BadInputError(f"{output} is a folder.", f"name a file: -o {output / lab.name}.vault")
    if not output.parent.is_dir():
        raise BadInputError(f"There is no folder {output.parent}.", f"make it first: mkdir -p {output.parent}")
    if lab.private.resolve() in output.resolve().parents:
        raise BadInputError(f"{output} is in the folder that is exported.", "name a file elsewhere.")
    if output.exists() and not force:
        with output.open("rb") as file:
            head = file.read(len(_HEAD))
        if head not in (_HEAD, b""):
            raise BadInputError(f"{output} is there, and is no export of a lab.", "name another file, or add --force.")
    with files.lock(lab.private / ".lock", "labtrack lab export"):
        placing.finish(lab)
        found = content.read(lab)
        if not any(name.startswith(f"{content.PRIVATE}/") for name in found.files):
            raise BadInputError(
                f"{lab.private} has no files of the lab yet.", "deploy it first, or `labtrack lab import`."
            )
        data = archive.pack(lab, found, content.mark(lab) or Mark(0, 0, ""))
    files.write_private(output, data)
    return found


def bring(lab: Lab, file: Path | None, *, force: bool = False) -> Brought:
    """Puts the files of an export where they belong; all of them or none.

    file: None, to take the newest of the lab's backup.  Raises BadInputError where a file is there already and
    differs; with force it is put aside and replaced.
    """
    if file is None:
        source, data = frombackup.newest(lab)
    else:
        source = str(file)
        try:
            data = file.expanduser().read_bytes()
        except OSError as error:
            raise BadInputError(
                f"Can't read {file}: {error.strerror}.", "name a file of `labtrack lab export`."
            ) from None
    export_ = archive.unpack(lab, data, source)
    if export_.fqdn != lab.fqdn and not force:
        raise BadInputError(
            f"{source} is of the lab {lab.name} at {export_.fqdn}, and lab_fqdn here is {lab.fqdn}.",
            "if it is the same lab with a new name: --force.",
        )
    names = export_.content.files
    try:
        return _brought(lab, export_, source, force=force)
    except OSError as error:
        where = error.filename or lab.private
        raise LabtrackError(f"Can't put {len(names)} files into {where}: {error.strerror}.", "`ls -ld` it.") from None


def _brought(lab: Lab, export_: archive.Export, source: str, *, force: bool) -> Brought:
    with files.lock(lab.private / ".lock", "labtrack lab import"):
        placing.finish(lab)
        take, same, differ = {}, [], []
        for name, data in export_.content.files.items():
            path = content.place_of(lab, name)
            if not path.exists() or (path.is_file() and not path.stat().st_size):
                take[name] = data
            elif path.is_file() and path.read_bytes() == data:
                same.append(name)
            else:
                differ.append(name)
                take[name] = data
        if differ and not force:
            shown = "\n".join(f"    {content.place_of(lab, name)}{_age(lab, name, export_.at)}" for name in differ)
            raise BadInputError(
                f"{len(differ)} of the files in {source} (of {export_.by}, {export_.at}) are here too, and differ:\n"
                f"{shown}\nNothing was changed.",
                f"keep yours; or add --force, and they are replaced and put aside into {lab.private / placing.ASIDE}.",
            )
        aside = placing.place(lab, take, keep_old=True)
        if content.mark(lab) is None or force:
            known = export_.mark
            if known.serial:
                content.set_mark(lab, known)
    return Brought(export_, tuple(take), tuple(same), aside)


def _age(lab: Lab, name: str, at: str) -> str:
    import datetime

    changed = datetime.datetime.fromtimestamp(content.place_of(lab, name).stat().st_mtime, datetime.timezone.utc)
    return "   (newer than the export)" if changed.strftime("%Y-%m-%dT%H:%M:%SZ") > at else ""
