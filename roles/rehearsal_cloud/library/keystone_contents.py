#!/usr/bin/python
"""Ansible module: services, projects and users of a Keystone, all in one call."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: keystone_contents
short_description: Fill a Keystone with services, projects, users and application credentials
description:
  - What openstack.cloud's modules do one object a call, some sixty calls for a whole cloud, in a few seconds.
  - Adds what is missing, and corrects addresses of endpoints; removes nothing.
  - A user who is there already keeps their password.
options:
  cloud: {type: str, required: true, description: Name of the admin's cloud in C(clouds_file).}
  clouds_file: {type: path, required: true, description: The clouds.yaml.}
  region: {type: str, required: true, description: Region of the endpoints.}
  services:
    type: list
    elements: dict
    default: []
    description: "Each with C(name), C(type) and C(endpoints), a dictionary of interface and URL."
  projects: {type: list, elements: str, default: [], description: Names of projects.}
  users:
    type: list
    elements: dict
    default: []
    description: "Each with C(name), C(password) and C(roles), a dictionary of project and role."
"""

EXAMPLES = r"""
- name: Fill Keystone
  keystone_contents:
    cloud: admin
    clouds_file: clouds.yaml
    region: RegionOne
    projects: [climate]
    users:
      - {name: labadmin, password: "{{ password }}", roles: {climate: member}}
"""

RETURN = r"""
done: {type: list, returned: always, description: What was added or corrected.}
"""

DOMAIN = "default"


class Contents:
    """The identity service of a cloud, and what was done to it."""

    def __init__(self, identity: Any, check_mode: bool) -> None:
        self.identity = identity
        self.check_mode = check_mode
        self.done: list[str] = []

    def add(self, what: str, create: Any, **attributes: Any) -> Any:
        """Create an object, and note it."""
        self.done.append(what)
        return None if self.check_mode else create(**attributes)

    def services(self, services: list[dict], region: str) -> None:
        there = {service.name: service for service in self.identity.services()}
        endpoints = {(e.service_id, e.interface): e for e in self.identity.endpoints() if e.region_id == region}
        for service in services:
            name = service["name"]
            found = there.get(name) or self.add(
                f"service {name}", self.identity.create_service, name=name, type=service["type"]
            )
            for interface, url in service["endpoints"].items():
                endpoint = endpoints.get((found.id, interface)) if found else None
                if endpoint is None:
                    self.add(
                        f"endpoint {name} {interface}",
                        self.identity.create_endpoint,
                        service_id=found and found.id,
                        interface=interface,
                        url=url,
                        region_id=region,
                    )
                elif endpoint.url != url:
                    self.add(f"endpoint {name} {interface}", self.identity.update_endpoint, endpoint=endpoint, url=url)

    def projects(self, names: list[str]) -> None:
        there = {project.name for project in self.identity.projects(domain_id=DOMAIN)}
        for name in names:
            if name not in there:
                self.add(f"project {name}", self.identity.create_project, name=name, domain_id=DOMAIN)

    def users(self, users: list[dict]) -> None:
        there = {user.name: user for user in self.identity.users(domain_id=DOMAIN)}
        projects = {project.name: project for project in self.identity.projects(domain_id=DOMAIN)}
        roles = {role.name: role for role in self.identity.roles()}
        given = {
            (a.user["id"], a.scope["project"]["id"], a.role["id"])
            for a in self.identity.role_assignments()
            if a.user and "project" in a.scope
        }
        for user in users:
            name = user["name"]
            found = there.get(name) or self.add(
                f"user {name}",
                self.identity.create_user,
                name=name,
                password=user["password"],
                domain_id=DOMAIN,
            )
            for project, role in user["roles"].items():
                if found and (found.id, projects[project].id, roles[role].id) in given:
                    continue
                self.add(
                    f"role {role} of {name} in {project}",
                    self.identity.assign_project_role_to_user,
                    project=projects.get(project),
                    user=found,
                    role=roles[role],
                )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "cloud": {"type": "str", "required": True},
            "clouds_file": {"type": "path", "required": True},
            "region": {"type": "str", "required": True},
            "services": {"type": "list", "elements": "dict", "default": []},
            "projects": {"type": "list", "elements": "str", "default": []},
            "users": {"type": "list", "elements": "dict", "default": [], "no_log": True},
        },
        supports_check_mode=True,
    )
    import openstack

    given = module.params
    config = openstack.config.OpenStackConfig(config_files=[given["clouds_file"]], load_envvars=False)
    connection = openstack.connection.Connection(config=config.get_one(cloud=given["cloud"]))
    contents = Contents(connection.identity, module.check_mode)
    contents.services(given["services"], given["region"])
    contents.projects(given["projects"])
    contents.users(given["users"])
    module.exit_json(changed=bool(contents.done), done=contents.done)


if __name__ == "__main__":
    main()
