#!/usr/bin/env bash
# Qwen2-VL-2B, fine-grained classification: FGVC-Aircraft, 100 classes, 4 images each.
# Edit the variables, or set them in the environment: MODEL=... GPUS=4 bash scripts/2B_aircraft_4_shot.sh. Further flags are passed on:
#   bash scripts/2B_aircraft_4_shot.sh --max_steps 10 --report_to none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:-Qwen/Qwen2-VL-2B-Instruct}
DATA=${DATA:-laolao77/ViRFT_CLS_fgvc_aircraft_4_shot}          # a Hub id, or the folder of its download
OUTPUT=${OUTPUT:-runs/2B_aircraft_4_shot}
REPORT_TO=${REPORT_TO:-tensorboard}   # tensorboard, wandb, none
ATTENTION=${ATTENTION:-sdpa}     # flash_attention_2 after: bash setup.sh --flash-attn
export DEBUG_MODE=${DEBUG_MODE:-false} LOG_PATH=${LOG_PATH:-$OUTPUT/rollouts.txt}   # true: every rollout as text

# One node as it stands; for several, run it on each with its NODE_RANK and the first one's address.
GPUS=${GPUS:-8} NODES=${NODES:-1} NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-12345}

# 8 GPUs x 1 prompt x 2 accumulation = 16 prompts, 128 completions a step; 400 rows = 25 steps an epoch, 200 steps.
[ -z "${VIRTUAL_ENV:-}" ] && [ -f .venv/bin/activate ] && source .venv/bin/activate
exec torchrun --nproc_per_node="$GPUS" --nnodes="$NODES" --node_rank="$NODE_RANK" \
    --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" \
    src/virft/grpo.py \
    --model_name_or_path "$MODEL" --dataset_name "$DATA" --output_dir "$OUTPUT" --run_name "2B_aircraft_4_shot" \
    --task classification --deepspeed local_scripts/zero3.json --max_prompt_length 1024 \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 2 --num_generations 8 \
    --num_train_epochs 8 --save_steps 100 \
    --logging_steps 1 --report_to "$REPORT_TO" --attn_implementation "$ATTENTION" --bf16 true \
    --max_pixels 401408 --resume_from_checkpoint auto "$@"
