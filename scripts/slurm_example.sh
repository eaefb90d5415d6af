#!/usr/bin/env bash
# Several nodes under Slurm: sbatch scripts/slurm_example.sh scripts/7B_base65cate_6k.sh [flags of grpo.py]
#SBATCH --job-name=virft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
# Two minutes before the time is up the run saves and exits; submit again and it resumes.
set -euo pipefail
launcher=${1:?usage: sbatch scripts/slurm_example.sh LAUNCHER [flags]}
shift
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR NODES=$SLURM_JOB_NUM_NODES GPUS=${SLURM_GPUS_ON_NODE:-8}
# One task a node; torchrun starts the node's processes. The signal goes on to every one of them.
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec bash "$0" "$@"' "$launcher" "$@" &
trap 'kill -TERM $!' TERM
wait $! || wait $!
