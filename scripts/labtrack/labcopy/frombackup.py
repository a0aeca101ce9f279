"""The lab's files out of the backup: what `labtrack-backup artifacts` has copied there from the server each night."""

from __future__ import annotations

import os
from pathlib import Path

import botocore.exceptions

from labtrack import labbackup, secrets
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import Lab
from labtrack.objectstore import Store, refusal

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def newest(lab: Lab) -> tuple[str, bytes]:
    """The newest export that the bucket of lab_backup has: its address and its bytes, still encrypted.

    The key is that of secrets.yml, or, where that is lost, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.  Raises
    BadInputError where there is none, LabtrackError where the store can't be asked.
    """
    store = _store(lab)
    prefix = f"{lab.name}/lab/"
    try:
        client = store.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=prefix)
        names = [one["Key"] for page in pages for one in page.get("Contents", ()) if one["Key"].endswith(".vault")]
        if not names:
            raise BadInputError(
                f"The bucket {store.bucket} has no files of the lab below {prefix}.",
                "see lab_name and lab_backup; the server copies them each night, with lab_backup.artifacts.",
            )
        body: bytes = client.get_object(Bucket=store.bucket, Key=max(names))["Body"].read()
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise LabtrackError(
            f"The bucket of the backups, {store.bucket}, can't be read: {refusal(error)}",
            "see lab_backup in lab.yml (its region, too), and that the key is of the project that owns the bucket.",
        ) from None
    return f"s3://{store.bucket}/{max(names)}", body


def _store(lab: Lab) -> Store:
    where = labbackup.of(lab.settings)
    if not where:
        raise BadInputError(
            "lab.yml has no lab_backup, which says where the backups are.", "put it back, and try again."
        )
    access, secret = (os.environ.get(name, "") for name in KEYS)
    if not access or not secret:
        if not lab.secrets_file.exists():
            raise BadInputError(
                f"{lab.secrets_file} is not there, which has the key of the backups.",
                f"take it from git; or set {' and '.join(KEYS)} to a key of the project that has the bucket.",
            )
        access, secret = (secrets.get(lab, name) for name in labbackup.KEYS)
    file = where.get("ca_file")
    ca = (lab.root / Path(file).expanduser()) if file else None
    if ca and not ca.exists():
        raise BadInputError(f"{ca} is not there, the CA of the backups' store.", "put it there: lab_backup.ca_file.")
    return Store(where["endpoint"].rstrip("/"), where.get("region", "us-east-1"), where["bucket"], access, secret, ca)
