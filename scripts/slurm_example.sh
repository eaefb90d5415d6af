#!/usr/bin/env bash
# Two nodes of eight GPUs under Slurm: sbatch scripts/slurm_example.sh [flags of grpo.py]
# Slurm warns five minutes before the end; the run saves a checkpoint then, and the next job goes on from it.
#SBATCH --job-name=virft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=slurm-%j.txt
set -euo pipefail

export NNODES=${SLURM_NNODES:-1}
export NPROC_PER_NODE=${SLURM_GPUS_ON_NODE:-8}
MASTER_ADDR=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" | head -n 1)
export MASTER_ADDR
export MASTER_PORT=${MASTER_PORT:-12345}

# One launcher for each node; NODE_RANK differs from node to node.
exec srun --kill-on-bad-exit=1 bash -c \
  'NODE_RANK=$SLURM_NODEID exec bash "$0" "$@"' "${LAUNCHER:-scripts/example.sh}" "$@"
