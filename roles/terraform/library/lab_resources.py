#!/usr/bin/python
"""Ansible module: what an OpenStack project already has under the names of a lab."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: lab_resources
short_description: Find what a project has under the names of a lab
description:
  - What a killed run of Terraform has made and could not write down, or what a lost state knew.
  - The cloud is the one that the environment names (C(OS_CLOUD) or C(OS_AUTH_URL) and its kin). Changes nothing.
options:
  lab: {type: str, required: true, description: The lab's name; what it has is called <lab>-server and so on.}
  bucket: {type: str, required: true, description: Name of the lab's bucket.}
"""

EXAMPLES = r"""
- name: Look what is there
  lab_resources:
    lab: climate
    bucket: climate-mlflow
"""

RETURN = r"""
found: {type: dict, returned: success, description: "Ids by the names that terraform/adopt.tf has for them."}
"""

UNASKED = """The cloud can't be asked what it has: {error}
To fix: {hint}"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"lab": {"type": "str", "required": True}, "bucket": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    import openstack

    from labtrack.cloud.answers import ERRORS, explain
    from labtrack.cloud.resources import AmbiguousError, look

    try:
        resources = look(openstack.connect(), module.params["lab"], module.params["bucket"])
        module.exit_json(changed=False, found=resources.only())
    except AmbiguousError as error:
        module.fail_json(msg=str(error))
    except ERRORS as error:
        what, hint = explain(error)
        module.fail_json(msg=UNASKED.format(error=what, hint=hint))


if __name__ == "__main__":
    main()
