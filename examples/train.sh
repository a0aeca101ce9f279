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

folder=/scratch/$USER/digits-$SLURM_JOB_ID
bin=/opt/researcher/venv/bin # on your cluster: `module load`, or your own environment
mkdir -p "$folder"

# The training records into a file of its own ...
export MLFLOW_TRACKING_URI=sqlite:///$folder/mlflow.db
export MLFLOW_EXPERIMENT_NAME=$USER
export MLFLOW_RUN_CONTEXT="{\"slurm.job_id\": \"$SLURM_JOB_ID\"}"
"$bin/mlflow" db upgrade "$MLFLOW_TRACKING_URI" 2>"$folder/upgrade.log"

# ... and a job on a node that reaches the lab's server sends it there while it grows, and ends with it.
sbatch --quiet --partition=transfer --job-name=digits-sync --mem=300 --output="digits-$SLURM_JOB_ID-sync.out" \
    --wrap=". ~/mlflow_env.sh && $bin/labtrack sync --watch -s $folder/mlflow.db"

script=$PWD/train.py
cd "$folder"
exec "$bin/python" "$script" "$@"
