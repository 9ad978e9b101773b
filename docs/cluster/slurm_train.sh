#!/bin/bash
# Training as one Slurm job: torchrun on each of its nodes, a process per GPU. Submit it again to resume.
#   sbatch docs/cluster/slurm_train.sh stage1 --data /shared/tsf --out /shared/runs/stage1 --host videoglamm ...
#SBATCH --job-name=sparrow-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@180
#SBATCH --output=%x-%j.log
set -euo pipefail

project=${SLURM_SUBMIT_DIR}            # the checkout, in a folder that all nodes see
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one node must not meet
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

cd "$project"
# Slurm sends SIGTERM to every process three minutes before the time is up, and torchrun hands its own on. The training
# counts that as one request, finishes its step and saves; without a longer timeout torchrun would kill it after 30 s.
srun .venv/bin/torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend=c10d --rdzv-endpoint="${nodes[0]}:$port" --rdzv-id="$SLURM_JOB_ID" \
    --shutdown-timeout=150 \
    -m flows.cli train "$@"
