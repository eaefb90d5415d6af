#!/usr/bin/env bash
# Install into .venv, then run the quick start: a tiny Qwen2-VL learns to find handwritten digits in minutes.
#   bash scripts/quickstart.sh                  the whole of it, 5 to 10 minutes on 4 cores; continues if interrupted
#   bash scripts/quickstart.sh --seeds 0 1 2    three runs and one table;  --help lists all flags
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup.sh
exec .venv/bin/python demo/quickstart.py "$@"
