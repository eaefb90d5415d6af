#!/usr/bin/env bash
# Open-vocabulary detection: Qwen2-VL-2B on 6,000 rows of COCO's 65 base categories.
# 8 GPUs x 1 prompt x 2 = 16 prompts, 128 completions a step; 375 steps.
# Every variable can be set from outside, further flags may follow: NPROC_PER_NODE=4 bash scripts/2B_base65cate_6k.sh --seed 1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:-Qwen/Qwen2-VL-2B-Instruct}
DATASET=${DATASET:-laolao77/ViRFT_COCO_base65}
OUTPUT_DIR=${OUTPUT_DIR:-output/2B_base65cate_6k}
DEEPSPEED=${DEEPSPEED:-local_scripts/zero3.json}
REPORT_TO=${REPORT_TO:-wandb}
RUN_NAME=${RUN_NAME:-2B_base65cate_6k}

# Several nodes: the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set.
NPROC_PER_NODE=${NPROC_PER_NODE:-8}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MASTER_PORT=${MASTER_PORT:-12345}

# Every rollout as text, one file per rank.
export DEBUG_MODE=${DEBUG_MODE:-false}
export LOG_PATH=${LOG_PATH:-"$OUTPUT_DIR/rollouts.txt"}

# A scheduler's SIGTERM saves a checkpoint: give the step that is running this many seconds to end.
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-240}

command -v torchrun > /dev/null || { echo "error: no torchrun here; run setup.sh, then: source .venv/bin/activate" >&2; exit 2; }
exec torchrun \
  --nproc_per_node="$NPROC_PER_NODE" --nnodes="$NNODES" --node_rank="$NODE_RANK" \
  --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" \
  src/virft/grpo.py \
  --output_dir "$OUTPUT_DIR" \
  --model_name_or_path "$MODEL" \
  --dataset_name "$DATASET" \
  --task detection \
  --deepspeed "$DEEPSPEED" \
  --max_prompt_length 1024 \
  --per_device_train_batch_size 1 \
  --gradient_accumulation_steps 2 \
  --logging_steps 1 \
  --num_train_epochs 1 \
  --save_steps 100 \
  --num_generations 8 \
  --gradient_checkpointing false \
  --bf16 true \
  --report_to "$REPORT_TO" \
  --run_name "$RUN_NAME" \
  --attn_implementation "${ATTN:-sdpa}" \
  --max_pixels 401408 \
  --resume_from_checkpoint auto \
  "$@"
