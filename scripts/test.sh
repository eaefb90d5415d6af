#!/usr/bin/env bash
# Install into .venv, then lint and run the whole test suite: fast tests first, then those that train.
#   bash scripts/test.sh                everything
#   bash scripts/test.sh -k parsing -x  any pytest arguments: only what they select
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup.sh --test

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=cpu
# One thread a process: several processes with several threads each are far slower on a few cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=PASSIVE
python=.venv/bin/python
if [ $# -gt 0 ]; then exec "$python" -m pytest "$@"; fi

"$python" -m ruff check .
"$python" -m ruff format --check .
cores=$("$python" -c 'import os; print(min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))')
"$python" -m pytest -m "not slow and not gpu" -n "$cores" --dist loadfile -q
exec "$python" -m pytest -m "slow and not gpu" -n "$cores" --dist loadfile -q
