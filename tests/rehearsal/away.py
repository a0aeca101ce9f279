"""A bucket of the rehearsal's other project, where a lab's backups go."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from labtrack.lab import Lab
from labtrack.objectstore import Store

if TYPE_CHECKING:
    from conftest import Rehearsal

PROJECT = "climate-backup"


@contextmanager
def bucket(rehearsal: Rehearsal, lab: Lab, name: str = PROJECT) -> Iterator[Store]:
    """A bucket, by a key of that project's; both gone at the end."""
    connection = rehearsal.cloud(PROJECT)
    connection.object_store.create_container(name)
    of = f"/users/{connection.current_user_id}/credentials/OS-EC2"
    made = connection.identity.post(of, json={"tenant_id": connection.current_project_id}).json()["credential"]
    store = Store(lab.s3_endpoint, lab.s3_region, name, made["access"], made["secret"], lab.s3_ca_file)
    try:
        yield store
    finally:
        own = store.client()  # by S3: large artifacts are there in parts, and their names may be any
        for page in own.get_paginator("list_objects_v2").paginate(Bucket=name):
            for one in page.get("Contents", ()):
                own.delete_object(Bucket=name, Key=one["Key"])
        connection.object_store.delete_container(name)
        connection.identity.delete(f"{of}/{made['access']}")


def settings(store: Store, file: Path, **more: object) -> str:
    """Writes lab.yml's and secrets.yml's lines for it, and more, into a file that nobody else reads: an argument."""
    file.touch(0o600)
    values = {
        "lab_backup": {
            "endpoint": store.endpoint,
            "bucket": store.bucket,
            "region": store.region,
            "ca_file": str(store.ca_file),
        },
        "secret_backup_access_key_id": store.access,
        "secret_backup_secret_access_key": store.secret,
        "secret_backup_cipher_pass": secrets.token_urlsafe(24),
    }
    file.write_text(yaml.safe_dump(values | more))
    return f"--extra-vars=@{file}"
