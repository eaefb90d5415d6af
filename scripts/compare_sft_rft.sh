#!/usr/bin/env bash
# Install into .venv, then compare SFT and RFT on the same rows: three seeds, one table with intervals.
#   bash scripts/compare_sft_rft.sh                              digit scans, 16 CPU-minutes a seed; continues if interrupted
#   bash scripts/compare_sft_rft.sh --preset classification      k-shot classification;  --help: your own model and rows
set -euo pipefail
# Paths among the flags are the caller's own: nothing here changes the folder.
root=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/setup.sh"
exec "$root/.venv/bin/python" "$root/demo/compare_sft_rft.py" "$@"
