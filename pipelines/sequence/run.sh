#!/usr/bin/env bash
# The whole sequence on the embedded backbone: five tasks, D-MoLE, sequential fine-tuning beside it, the zero-shot row.
#
#     bash pipelines/sequence/run.sh                              # about ten minutes on two cores, after the installation
#     bash pipelines/sequence/run.sh --finetune                   # and the upper bound: each task alone
#     bash pipelines/sequence/run.sh --seed 1 --run runs/seed-1   # another seed, another run directory
#     ... --shared runs/shared                                    # profiles, features and routers for several runs
#
# Every line below is a program of its own that reads files and writes files; start the script again and it goes on
# where it was. `ls` of the run directory shows how far it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

run=dmole-run shared="" seed=0 finetune=""
while [ $# -gt 0 ]; do
  case "$1" in
    --run) run=$2 && shift 2 ;;
    --shared) shared=$2 && shift 2 ;;
    --seed) seed=$2 && shift 2 ;;
    --finetune) finetune=yes && shift ;;
    *) echo "run.sh: unknown option $1 (--run DIR, --shared DIR, --seed N, --finetune)" >&2 && exit 2 ;;
  esac
done

bash pipelines/setup.sh
source .venv/bin/activate
settings=(--run "$run" --config pipelines/sequence/dmole.toml)
if [ -n "$shared" ]; then settings+=(--shared "$shared"); fi

# 1. How strongly does each task pull at each layer?                        profiles/<task>.parquet
dmole profile "${settings[@]}"
# 2. Which layers get an expert of the task, within 2 % of the parameters?   allocations/<task>.json
dmole allocate "${settings[@]}" --budget 2%
# 3. A small autoencoder that recognises the task's inputs.                 routers/<task>.safetensors
dmole train-router "${settings[@]}"
# 4. Train the new experts, nothing else; task after task.                  experts/<task>.safetensors
dmole train-task "${settings[@]}" --seed "$seed"
# 5. After every stage, every task.                                         evaluations/d-mole/<stage>/<task>.parquet
dmole evaluate "${settings[@]}" --stage all

# The same with one adapter that is trained on and on, at the same number of parameters, and with no training at all.
dmole train-task "${settings[@]}" --seed "$seed" --method seq-ft --budget 2%
dmole evaluate "${settings[@]}" --stage all --method seq-ft --method zero-shot

if [ -n "$finetune" ]; then
  dmole train-task "${settings[@]}" --seed "$seed" --method finetune --budget 2%
  dmole evaluate "${settings[@]}" --stage all --method finetune
fi

dmole evaluate "${settings[@]}" --report overview
dmole evaluate "${settings[@]}" --report cost
