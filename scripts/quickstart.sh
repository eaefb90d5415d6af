#!/usr/bin/env bash
# Install into .venv, then run the quick start: a tiny Qwen2-VL learns to find handwritten digits in minutes.
#   bash scripts/quickstart.sh                  the whole of it, 5 to 10 minutes on 4 cores; continues if interrupted
#   bash scripts/quickstart.sh --seeds 0 1 2    three runs and one table;  --help lists all flags
set -euo pipefail
# Paths among the flags are the caller's own: nothing here changes the folder.
root=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/setup.sh"
exec "$root/.venv/bin/python" "$root/demo/quickstart.py" "$@"
