#!/usr/bin/env bash
# A start for your own rows: one or two GPUs, no DeepSpeed, gradient checkpointing.
# Edit the variables, or set them in the environment: MODEL=... GPUS=4 bash scripts/example.sh. Further flags are passed on:
#   bash scripts/example.sh --max_steps 10 --report_to none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:-Qwen/Qwen2-VL-2B-Instruct}
DATA=${DATA:-data/rows.jsonl}          # image, problem, solution: see README, Your own data
OUTPUT=${OUTPUT:-runs/example}
REPORT_TO=${REPORT_TO:-tensorboard}   # tensorboard, wandb, none
ATTENTION=${ATTENTION:-sdpa}     # flash_attention_2 after: bash setup.sh --flash-attn
export DEBUG_MODE=${DEBUG_MODE:-false} LOG_PATH=${LOG_PATH:-$OUTPUT/rollouts.txt}   # true: every rollout as text

# One node as it stands; for several, run it on each with its NODE_RANK and the first one's address.
GPUS=${GPUS:-1} NODES=${NODES:-1} NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-12345}

# 1 GPU x 1 prompt x 8 accumulation = 8 prompts, 64 completions a step.
[ -z "${VIRTUAL_ENV:-}" ] && [ -f .venv/bin/activate ] && source .venv/bin/activate
exec torchrun --nproc_per_node="$GPUS" --nnodes="$NODES" --node_rank="$NODE_RANK" \
    --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" \
    src/virft/grpo.py \
    --model_name_or_path "$MODEL" --dataset_name "$DATA" --output_dir "$OUTPUT" --run_name "example" \
    --task "${TASK:-detection}" --max_prompt_length 1024 \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 8 --num_generations 8 \
    --gradient_checkpointing true --num_train_epochs 1 --save_steps 50 \
    --logging_steps 1 --report_to "$REPORT_TO" --attn_implementation "$ATTENTION" --bf16 true \
    --max_pixels 401408 --resume_from_checkpoint auto "$@"
