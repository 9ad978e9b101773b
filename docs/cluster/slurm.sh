#!/bin/bash
# Curation as one Slurm job: a Ray cluster over its nodes, the driver on the first one. Submit it again to resume.
#   sbatch docs/cluster/slurm.sh hcstvg /shared/hcstvg /shared/tsf full
#SBATCH --job-name=sparrow
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail

source_name=$1 data=$2 out=$3 preset=${4:-lite}
project=${SLURM_SUBMIT_DIR}           # the checkout, in a folder that all nodes see
ray="$project/.venv/bin/ray"
gpus=${SLURM_GPUS_ON_NODE:-0}
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one node must not meet

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address="$head:$port"
export RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

run_on() { # node, then the arguments of `ray start`
    local node=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" \
        "$ray" start --block --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" "$@" &
}

run_on "$head" --head --port="$port" --include-dashboard=false
for _ in $(seq 60); do
    "$ray" health-check --address "$address" 2> /dev/null && break
    sleep 2
done
for node in "${nodes[@]:1}"; do
    run_on "$node" --address="$address"
done

workers=$((SLURM_JOB_NUM_NODES * (gpus > 0 ? gpus : SLURM_CPUS_PER_TASK)))
cd "$project"
RAY_ADDRESS=$address .venv/bin/sparrow curate "$source_name" --data-root "$data" --out "$out" \
    --preset "$preset" --workers "$workers" &
driver=$!
trap 'kill -TERM $driver 2> /dev/null' TERM # the time is nearly up: what is finished is kept
code=0
wait "$driver" || code=$?
trap '' TERM
wait "$driver" 2> /dev/null || true
jobs -p | xargs --no-run-if-empty kill 2> /dev/null || true
exit "$code"
