#!/bin/bash
# The training of train.py as a Slurm job, on a node that has no internet:
#
#     sbatch train.sh --epochs 20 --pause 0.5
#
#SBATCH --job-name=digits
#SBATCH --partition=main
#SBATCH --time=00:10:00
#SBATCH --mem=1000
#SBATCH --output=digits-%j.out
set -e

bin=/opt/researcher/venv/bin # on your cluster: `module load`, or your own environment
# shellcheck source=/dev/null
. ~/mlflow_env.sh            # the lab's server, which this node reaches through `login` only

# Recorded on disk, whatever the network does; sent to the server while it trains.
exec "$bin/labtrack" run --folder "/scratch/$USER/runs" --gateway login -- "$bin/python" train.py "$@"
