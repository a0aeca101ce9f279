"""What a message of Terraform, the provider or the cloud says, and what helps."""

from __future__ import annotations

import re

from labtrack.errors import LabtrackError

SHOWN = 700  # characters of each error
AGAIN = "Then run the same command again: it goes on from here."

HINTS = (
    (
        "Error acquiring the state lock",
        'another run for this lab is at work; "Who" above says whose. Wait until it has ended.',
    ),
    (
        "(?i)quota|OverLimit|Maximum number of",
        "the project's quota is used up. See it with `openstack quota show --usage`, remove what nobody needs or ask "
        "for more. lab_router and lab_floating_ip use what the project has already.",
    ),
    (
        r"(?s)([Ff]lavor|minDisk|minRam)[^\n]*too small",
        "take a name that `openstack flavor list` shows for lab_flavor, with 2 cores, 3 GB of memory and 20 GB of "
        "disk.",
    ),
    (
        r"(?i)requires authentication|authentication failed|\b401\b|No suitable (endpoint|credentials)|Fernet token",
        "log in again; `labtrack preflight` says which credentials were found. A token or application credential may "
        "have expired.",
    ),
    (
        r"(?i)connection (refused|reset)|no such host|i/o timeout|\bEOF\b|\b50[0234]\b|deadline exceeded|"
        "no route to host",
        "the cloud did not answer. Try again in a minute; what was made until then is written down.",
    ),
    (
        "(?i)resiz|VERIFY_RESIZE",
        "the cloud could not give the server another flavor. Set lab_flavor back to what it was. `openstack server "
        "show` says whether the server still runs; if not: `openstack server set --state active` and `openstack server "
        "start`. To have the other flavor all the same, save the database and have a new server: -e "
        "replace_server=true.",
    ),
    (
        "(?i)overlaps with",
        "the addresses of lab_network_cidr are in use behind the same router or network: `openstack subnet list` shows "
        "by whom. Choose a range that is free, for example 10.77.0.0/24.",
    ),
    (
        "(?i)key ?pair|key_name|keydata",
        "the cloud does not take the key of the first admin. Its type may be unknown there, so give one of another "
        "(ssh-ed25519, or ssh-rsa with 3072 bits); a key pair of that name may belong to somebody else, so name one "
        "that you have (`openstack keypair list`) in lab_key_pair.",
    ),
    (
        "(?i)container.*(40[39]|already exists|Forbidden)|BucketAlreadyExists",
        "the bucket's name is taken, perhaps by somebody else. Choose another lab_bucket, or lab_bucket_manage: false "
        "if it is yours.",
    ),
    (
        "prevent_destroy",
        "the plan would delete data or the address. playbooks/destroy.yml does that, when they are named, and while "
        "lab.yml still has them (lab_data_volume): what it no longer has, playbooks/provision.yml forgets first, and "
        "keeps.",
    ),
)
# The place in our files and its lines stand between an error's title and its text.
_PLACE = re.compile(r"^ +(?:with |on |\d+:|[├│]).*$|^This was checked by .*$", re.MULTILINE)
_ERROR = re.compile(r"^Error: (.*?)(?=^Error: |^Warning: |\Z)", re.MULTILINE | re.DOTALL)


def failure(said: str) -> LabtrackError:
    """What Terraform has written to standard error, in words, with what helps where that is known."""
    errors = [" ".join(error.split()) for error in _ERROR.findall(_PLACE.sub("", said))]
    what = "\n".join(cut(error, SHOWN) for error in errors or [" ".join(said.split()) or "It does not say why."])
    hints = [hint for pattern, hint in HINTS if re.search(pattern, said)]
    if not hints:
        return LabtrackError(f"Terraform stopped:\n{what}\n{AGAIN}")
    return LabtrackError(f"Terraform stopped:\n{what}", "\n".join(["\nTo fix: ".join(hints), AGAIN]))


def cut(text: str, most: int) -> str:
    """The beginning of a text that may be long."""
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."
