"""What the machines of the cluster reach, and what they share."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Cluster, Rehearsal

INSIDE = ["node1", "node2"]
MACHINES = [*INSIDE, "transfer", "login"]
CONNECT = """
import socket, sys
for place in sys.argv[1:]:
    host, port = place.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5)
        print("reached")
    except OSError as error:
        print(type(error).__name__, error)
"""


def connect(cluster: Cluster, node: str, *places: str) -> list[str]:
    """What comes of connecting from a node to each `host:port`."""
    return cluster.ada(shlex.join(["python3", "-c", CONNECT, *places]), node=node).splitlines()


def test_all_nodes_are_there_and_take_jobs(cluster: Cluster) -> None:
    said = cluster.ada("sinfo -hN -o '%N %P %T'").splitlines()
    assert {tuple(line.split()) for line in said if line.endswith(" idle")} == {
        ("node1", "main*", "idle"), ("node2", "main*", "idle"), ("node1", "low", "idle"), ("node2", "low", "idle"),
        ("transfer", "transfer", "idle"),
    }  # fmt: skip
    assert cluster.ada("srun --nodelist=node1,node2 --ntasks-per-node=1 hostname | sort").split() == INSIDE


@pytest.mark.parametrize("node", INSIDE)
def test_a_compute_node_reaches_nothing_outside(cluster: Cluster, rehearsal: Rehearsal, node: str) -> None:
    server = rehearsal.addresses["server"][0]
    outside = [f"{server}:443", "cloud.rehearsal.test:8080", "10.99.0.1:22", "192.0.2.1:443"]
    *found, named, inside = connect(cluster, node, *outside, f"{rehearsal.fqdn}:443", "login:22")
    assert ["Network is unreachable" in one for one in found] == [True] * len(outside), found
    assert "gaierror" in named
    assert inside == "reached"


def test_the_transfer_node_reaches_server_store_and_packages(cluster: Cluster, rehearsal: Rehearsal) -> None:
    assert connect(cluster, "transfer", f"{rehearsal.fqdn}:443", "cloud.rehearsal.test:8080") == ["reached"] * 2
    found = cluster.root("transfer", "apt-get update -qq", check=True)
    assert "W:" not in found.stderr


@pytest.mark.parametrize("node", MACHINES)
def test_folders_are_shared_over_the_network(cluster: Cluster, node: str) -> None:
    mounted = cluster.ada("findmnt -no SOURCE,FSTYPE /home; findmnt -no SOURCE,FSTYPE /scratch", node=node)
    assert mounted.split() == ["login:/home", "fuse.glusterfs", "login:/scratch", "fuse.glusterfs"]


def test_what_one_node_writes_another_reads(cluster: Cluster) -> None:
    cluster.ada("hostname >/scratch/ada/where", node="node1")
    assert cluster.ada("cat /scratch/ada/where; rm /scratch/ada/where", node="node2") == "node1"


def test_a_lock_holds_on_all_nodes(cluster: Cluster) -> None:
    other = "ssh -o BatchMode=yes node2 flock --nonblock /scratch/ada/lock true"
    tried = cluster.ada(f"flock /scratch/ada/lock sh -c '{other}; echo $?; ssh node2 true; echo $?'", node="node1")
    assert tried.split() == ["1", "0"]
    assert cluster.ada(f"{other}; echo $?", node="node1") == "0"


def test_people_are_the_same_everywhere_and_alone_in_their_folders(cluster: Cluster) -> None:
    ids = {cluster.root(node, "id ada; id grace", check=True).stdout for node in MACHINES}
    assert len(ids) == 1
    for user, other in (("ada", "grace"), ("grace", "ada")):
        listed = cluster.root("node1", f"su - {user} -c 'ls /home/{other}; ls /scratch/{other}'")
        assert listed.stderr.count("Permission denied") == 2


def test_a_file_that_is_written_again_is_read_again(cluster: Cluster) -> None:
    """Of the same size, while another node has it open: what a database does."""
    file = "/scratch/ada/page"
    again = f"ssh node2 'printf new | dd of={file} conv=notrunc status=none'"
    said = cluster.ada(f"printf old >{file}; exec 3<{file}; cat {file}; {again}; cat {file}; rm {file}", node="node1")
    assert said == "oldnew"


def test_a_job_has_the_people_s_python_and_a_folder_of_its_own(cluster: Cluster, rehearsal: Rehearsal) -> None:
    ask = "import labtrack, os, sys; print(sys.prefix, os.access(os.environ['SLURM_TMPDIR'], os.W_OK))"
    said = cluster.ada(f"srun --nodelist=node2 {rehearsal.PYTHON} -c {shlex.quote(ask)}")
    assert said == "/opt/researcher/venv True"
    assert "Read-only" in cluster.root("node2", "touch /opt/researcher/x").stderr


def test_an_idle_node_needs_little_memory(cluster: Cluster) -> None:
    sums = "cat /proc/[0-9]*/smaps_rollup 2>/dev/null | awk '/^Pss:/ {kib += $2} END {print int(kib / 1024)}'"
    used = {node: int(cluster.root(node, sums, check=True).stdout) for node in (*INSIDE, "transfer")}
    assert max(used.values()) < 100, used
