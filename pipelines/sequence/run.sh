#!/usr/bin/env bash
# The full sequence on the embedded backbone: five tasks with D-MoLE, sequential fine-tuning and zero-shot.
#
#     bash pipelines/sequence/run.sh                              # about ten minutes on two cores, after the installation
#     bash pipelines/sequence/run.sh --finetune                   # also the upper bound: each task trained alone
#     bash pipelines/sequence/run.sh --seed 1 --run runs/seed-1   # another seed, another run directory
#     ... --shared runs/shared                                    # share profiles, features and routers between runs
#
# Every command reads files and writes files; stages.sh has those of the five stages. When the script is started again, finished work
# is skipped; `ls` of the run directory shows the progress.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

run=dmole-run shared="" seed=0 baselines=(seq-ft zero-shot)
while [ $# -gt 0 ]; do
  case "$1" in
    --run) run=$2 && shift 2 ;;
    --shared) shared=$2 && shift 2 ;;
    --seed) seed=$2 && shift 2 ;;
    --finetune) baselines+=(finetune) && shift ;;
    *) echo "run.sh: unknown option $1 (--run DIR, --shared DIR, --seed N, --finetune)" >&2 && exit 2 ;;
  esac
done

bash pipelines/setup.sh
source .venv/bin/activate
source pipelines/sequence/stages.sh
everywhere=(--run "$run" --config pipelines/sequence/dmole.toml)
if [ -n "$shared" ]; then everywhere+=(--shared "$shared"); fi
reading=("${everywhere[@]}")
training=("${reading[@]}" --seed "$seed")

# D-MoLE, within 2 % of the backbone's parameters.
five_stages
# One adapter that is fine-tuned sequentially, at the same number of parameters; the backbone without training.
for method in "${baselines[@]}"; do
  baseline "$method"
done

dmole report overview "${everywhere[@]}"
dmole report cost "${everywhere[@]}"
