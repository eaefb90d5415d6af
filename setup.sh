#!/usr/bin/env bash
# Install virft into .venv at the project's root. Run it again at any time: it takes a second when nothing changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'TEXT'
usage: bash setup.sh [--test] [--dev] [--vllm] [--flash-attn] [--wandb] [--qlora] [--notebook] [--newest]

Installs virft and what it needs into .venv (about 5 GB with the CUDA build of torch, which also runs on a CPU).
  --test        what the test suite needs                --dev       the tests, pre-commit and nbstripout
  --vllm        vLLM rollouts (chooses its own torch)    --flash-attn  FlashAttention 2 (compiles; needs nvcc)
  --wandb       Weights & Biases                         --qlora     4-bit base weights (bitsandbytes)
  --notebook    JupyterLab
  --newest      the newest versions that pyproject.toml admits, not the tested ones of constraints.txt
Extras add up over several runs. PYTHON=... chooses the interpreter of a new .venv (3.11 or later).
TEXT
}

extras=() ; newest=0
for flag in "$@"; do
  case "$flag" in
    --test | --dev | --vllm | --flash-attn | --wandb | --qlora | --notebook) extras+=("${flag#--}") ;;
    --newest) newest=1 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: setup.sh does not know $flag" >&2; usage >&2; exit 2 ;;
  esac
done

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
if [ ! -x .venv/bin/python ]; then
  chosen=""
  candidates=(python3 python3.13 python3.12 python3.11 python)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi  # what was asked for, and nothing else
  for candidate in "${candidates[@]}"; do
    if command -v "$candidate" >/dev/null 2>&1 && new_enough "$candidate"; then chosen="$candidate"; break; fi
  done
  if [ -z "$chosen" ] && [ -n "${PYTHON:-}" ]; then
    echo "error: PYTHON=$PYTHON is no Python 3.11 or later; name another one, or leave PYTHON out" >&2; exit 2
  fi
  if [ -z "$chosen" ]; then
    echo "error: no Python 3.11 or later found; install one or name it with PYTHON=/path/to/python3.11" >&2; exit 2
  fi
  if ! "$chosen" -m venv .venv; then
    rm -rf .venv
    echo "error: '$chosen -m venv' failed; on Debian and Ubuntu install the package python3-venv" >&2; exit 2
  fi
fi
new_enough .venv/bin/python || { echo "error: .venv holds a Python older than 3.11; remove it and run again" >&2; exit 2; }
# The programs in it name the folder that it was made in.
made_in=$(. .venv/bin/activate >/dev/null 2>&1 && printf '%s' "$VIRTUAL_ENV") || made_in=""
if [ -n "$made_in" ] && ! [ "$made_in" -ef .venv ]; then
  echo "error: .venv was made as $made_in and then moved or copied; remove it and run again" >&2; exit 2
fi
# It lacks pip where its making was interrupted.
if ! .venv/bin/python -c 'import pip' 2>/dev/null && ! .venv/bin/python -m ensurepip --upgrade >/dev/null 2>&1; then
  echo "error: .venv has no pip; remove .venv and run again" >&2; exit 2
fi

# What is installed is written down: the extras asked for so far, and a digest of all that decides the outcome.
stamp=.venv/virft-installed
if [ -f "$stamp" ]; then read -ra before <<<"$(head -n 1 "$stamp")"; extras+=("${before[@]+"${before[@]}"}"); fi
extras=($(printf '%s\n' "${extras[@]+"${extras[@]}"}" | sort -u))
# vLLM pins its own torch and transformers, so the tested versions cannot hold beside it.
case " ${extras[*]-} " in *" vllm "*) newest=1 ;; esac
digest=$(cat pyproject.toml constraints.txt setup.sh src/virft/__init__.py <(pwd) <(echo "$newest") | .venv/bin/python -c \
  'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
wanted="${extras[*]-}"$'\n'"$digest"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

echo "Installing virft into .venv${extras:+ with ${extras[*]}} (the first time: about 5 GB, some minutes) ..."
constraints=(-c constraints.txt)
[ "$newest" = 1 ] && constraints=()
plain=() ; flash=0
for extra in "${extras[@]+"${extras[@]}"}"; do
  if [ "$extra" = flash-attn ]; then flash=1; else plain+=("$extra"); fi
done
joined=$(IFS=,; echo "${plain[*]-}")
.venv/bin/python -m pip install --quiet --disable-pip-version-check "${constraints[@]+"${constraints[@]}"}" -e ".${joined:+[$joined]}"
if [ "$flash" = 1 ]; then
  # It builds against the torch that is there, so it comes after it and without build isolation.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check ninja packaging wheel setuptools
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[flash-attn]"
fi
printf '%s' "$wanted" >"$stamp.tmp" && mv "$stamp.tmp" "$stamp"
echo "Done: source .venv/bin/activate"
