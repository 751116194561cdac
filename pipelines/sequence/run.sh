#!/usr/bin/env bash
# The full sequence on the embedded backbone: five tasks with D-MoLE, sequential fine-tuning and zero-shot.
#
#     bash pipelines/sequence/run.sh                              # about ten minutes on two cores, after the installation
#     bash pipelines/sequence/run.sh --finetune                   # also the upper bound: each task trained alone
#     bash pipelines/sequence/run.sh --seed 1 --run runs/seed-1   # another seed, another run directory
#     ... --shared runs/shared                                    # share profiles, features and routers between runs
#
# Every command below reads files and writes files. When the script is started again, finished work is skipped; `ls` of the run
# directory shows the progress.
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

# 1. Measure how sensitive each layer is to each task.                      profiles/<task>.parquet
dmole profile "${settings[@]}"
# 2. Choose the layers that get an expert, within 2 % of the parameters.     allocations/<task>.json
dmole allocate "${settings[@]}" --budget 2%
# 3. Train a small autoencoder that recognizes the task's inputs.           routers/<task>.safetensors
dmole train-router "${settings[@]}"
# 4. Train the new experts, and nothing else, task after task.              experts/<task>.safetensors
dmole train-task "${settings[@]}" --seed "$seed"
# 5. Evaluate all tasks after every task.                                   evaluations/d-mole/<stage>/<task>.parquet
dmole evaluate "${settings[@]}" --stage all

# The same with one adapter that is fine-tuned sequentially, at the same number of parameters, and without training.
dmole train-task "${settings[@]}" --seed "$seed" --method seq-ft --budget 2%
dmole evaluate "${settings[@]}" --stage all --method seq-ft --method zero-shot

if [ -n "$finetune" ]; then
  dmole train-task "${settings[@]}" --seed "$seed" --method finetune --budget 2%
  dmole evaluate "${settings[@]}" --stage all --method finetune
fi

dmole evaluate "${settings[@]}" --report overview
dmole evaluate "${settings[@]}" --report cost
