"""The kit is taken away from the machine, without the data and with them, and the lab is deployed again each time.

The last but one of all files: with the data goes the run that tests of other files look at.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from api import Api

if TYPE_CHECKING:
    from conftest import Rehearsal

pytestmark = pytest.mark.long

# Whatever has our names, or Ansible's mark, or is in places that are ours; accounts, firewall, ports, units.
LEFT = r"""
find /etc /usr/local /opt /var /home /root -xdev \( -path /var/cache/apt -o -path /var/lib/apt \) -prune -o \
    -regextype egrep -iregex '.*(labtrack|mlflow|prometheus|nginx|certbot)[^/]*' -prune -print
grep -l -r -i 'ansible managed' /etc /usr/local
find /etc/systemd/system -xtype l
find /usr/local/sbin /usr/local/bin /usr/local/lib -mindepth 1 -maxdepth 1 ! -name 'python3*' ! -name '*.pth'
getent passwd | grep -o -E '^(mlflow|labtrack-[a-z]+|prometheus|www-labtrack):'
nft list tables | grep labtrack
ss -Hltn | grep -E ':(80|443) '
systemctl list-unit-files --no-legend | grep -o -E '^(labtrack|mlflow|nginx|prometheus|certbot)[^ ]*'
"""
STAYS = {
    "/etc/sudoers.d/labtrack",  # the admins' way to root
    "/var/lib/labtrack",  # the lab's files, encrypted
    "/var/lib/labtrack-metrics",  # figures
    "/var/backups/mlflow",  # dumps of the databases
}
DATA_STAY = STAYS - {"/var/lib/labtrack", "/var/lib/labtrack-metrics", "/var/backups/mlflow"}


def objects(rehearsal: Rehearsal) -> set[str]:
    """What the lab's bucket has."""
    store = rehearsal.cloud(rehearsal.lab["lab_cloud"]).object_store
    return {one.name for one in store.objects(rehearsal.lab["lab_bucket"])}


def taken_away(rehearsal: Rehearsal, *arguments: str) -> set[str]:
    """Take the kit away, twice, the second time in vain; what is left."""
    for changed in (True, False):
        done = rehearsal.playbook("playbooks/remove.yml", "-e", "remove=all", *arguments, check=True)
        assert bool(re.search(r"server +: ok=\d+ +changed=0 ", done.stdout)) is not changed, done.stdout[-2000:]
    return set(rehearsal.ssh("server", LEFT).stdout.split())


def test_whole_kit_is_taken_away_and_comes_back_to_its_data(rehearsal: Rehearsal, admin: Api) -> None:
    run = admin.new_run()
    assert admin.log(run, 1).status_code == 200
    ca = rehearsal.ca.read_text()
    assert {name for name in taken_away(rehearsal) if not name.startswith("/etc/postgresql/")} == STAYS
    runs = rehearsal.ssh("server", "cd / && runuser -u postgres -- psql -XtAc 'TABLE runs' mlflowdb", check=True).stdout
    assert run in runs
    rehearsal.playbook("site.yml", "-e", "auto_approve=true", check=True)
    assert rehearsal.ca.read_text() == ca
    assert admin.steps(run) == [1]


def test_the_data_go_where_the_lab_is_named_and_it_begins_anew(rehearsal: Rehearsal, admin: Api) -> None:
    run = admin.new_run()
    assert admin.log(run, 1).status_code == 200
    ca, kept = rehearsal.ca.read_text(), objects(rehearsal)
    assert kept
    refused = rehearsal.playbook("playbooks/remove.yml", "-e", "remove=all", "-e", "remove_data=another")
    assert refused.returncode != 0 and "The data of another are not here." in refused.stdout
    assert admin.steps(run) == [1], "nothing was taken away"
    try:
        assert taken_away(rehearsal, "-e", f"remove_data={rehearsal.lab['lab_name']}") == DATA_STAY
        assert rehearsal.ssh("server", "ls -A /var/lib/postgresql; ls -d /etc/postgresql* 2>/dev/null").stdout == ""
        installed = rehearsal.ssh(
            "server", "dpkg-query -W -f '${db:Status-Abbrev} ${Package}\\n' 'postgresql-[1-9]*'"
        ).stdout
        assert [line for line in installed.splitlines() if not line.startswith("un")] == []
        assert objects(rehearsal) >= kept, "buckets are never emptied"
    finally:
        rehearsal.playbook("site.yml", "-e", "auto_approve=true", check=True)
    assert rehearsal.ca.read_text() == ca
    assert admin.get(f"runs/get?run_id={run}").status_code == 404
    assert admin.log(again := admin.new_run(), 1).status_code == 200
    assert admin.steps(again) == [1]
    rehearsal.run("bash", "-c", f". {rehearsal.private}/ada/mlflow_env.sh && labtrack doctor --write", check=True)
