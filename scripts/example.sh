#!/usr/bin/env bash
# Your own rows: set DATASET to a Hub id, a save_to_disk folder, a .parquet, .json or .jsonl file.
# Check the rows first: python -m virft.data.validate FILE
# Every variable can be set from outside, further flags may follow: NPROC_PER_NODE=4 bash scripts/example.sh --seed 1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:-Qwen/Qwen2-VL-2B-Instruct}
DATASET=${DATASET:-laolao77/ViRFT_COCO_8_cate_4_shot}
OUTPUT_DIR=${OUTPUT_DIR:-output/example}
DEEPSPEED=${DEEPSPEED:-local_scripts/zero3.json}
REPORT_TO=${REPORT_TO:-wandb}
RUN_NAME=${RUN_NAME:-example}

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
  --task "${TASK:-detection}" \
  --deepspeed "$DEEPSPEED" \
  --max_prompt_length 1024 \
  --per_device_train_batch_size 1 \
  --gradient_accumulation_steps 2 \
  --logging_steps 1 \
  --num_train_epochs 2 \
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
