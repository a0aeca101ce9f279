"""`make demo`: from nothing to a training run on a deployed server, and what to look at next."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.markup import escape

import rehearsal
from labtrack import lab

NEXT = """
[bold green]Ready[/] after {minutes:.0f} min {seconds:.0f} s.

  The server            https://{fqdn}
  A researcher's file   private/rehearsal/ada/mlflow_env.sh (and grace's): user, password and S3 key
  Its certificate       private/rehearsal/ca.pem, of the lab's own CA
  The cloud             export OS_CLIENT_CONFIG_FILE=private/rehearsal/clouds.yaml OS_CLOUD=climate
                        .venv/bin/openstack server list
  All that was printed  build/logs/
  Pictures of its pages test-results/, when `make test` has been run

Look at it in a browser: log in as [bold]ada[/] with MLFLOW_TRACKING_PASSWORD from her file.
  on this machine       https://{fqdn}
  from your own         ssh -D 1080 THIS-MACHINE, then
                        chromium --proxy-server=socks5://localhost:1080 https://{fqdn}
Train yourself, as she does on the cluster (nodes without internet; their runs are seen at the server all the same):
  ssh -i private/rehearsal/id_ed25519 -o UserKnownHostsFile=private/rehearsal/known_hosts -t root@10.99.0.20 su - ada
  sbatch train.sh --pause 1 --learning-rate 0.01, and squeue, sacct; examples/train.sh says how
Stop it and put this machine back: [bold]make down[/]
"""


def main() -> int:
    """Run the demo; returns the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    if os.geteuid() != 0:
        console.print(
            "The rehearsal boots machines (systemd-nspawn), which needs root.\n"
            "To fix: run `sudo make demo`, or use a throw-away virtual machine."
        )
        return 2
    started = time.monotonic()
    try:
        rehearsal.run_steps([rehearsal.REHEARSE, rehearsal.SITE, rehearsal.TRAIN], console)
    except rehearsal.StepFailed as failure:
        console.print(f"[bold red]Stopped.[/] {escape(str(failure))}")
        return 1
    except KeyboardInterrupt:
        console.print("\nStopped. `make demo` goes on from here, `make down` removes what was started.")
        return 130
    minutes, seconds = divmod(time.monotonic() - started, 60)
    console.print(NEXT.format(fqdn=lab.load(rehearsal.LAB).fqdn, minutes=minutes, seconds=seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
