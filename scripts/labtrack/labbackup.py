"""lab_backup: what the schema can't say of it, and the secrets that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CIPHER = "secret_backup_cipher_pass"
KEYS = ("secret_backup_access_key_id", "secret_backup_secret_access_key")
WHERE = ("lab_backup", "bucket")
INSTEAD = "Name a bucket of another project, and put that project's key into secrets.yml."


def of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """lab_backup as lab.yml has it; empty where that is none, or not what it has to be."""
    found = data.get("lab_backup")
    return found if isinstance(found, dict) else {}


def why_not(data: Mapping[str, Any]) -> str:
    """Why the backups can't be in this bucket; empty when they can."""
    places = [(str(data.get("lab_s3_endpoint")).rstrip("/"), data.get("lab_bucket"))]
    if (str(of(data).get("endpoint")).rstrip("/"), of(data).get("bucket")) not in places:
        return ""
    return "lab_backup.bucket is the bucket of the artifacts: whoever has MLflow's key could delete the backups."
