#!/usr/bin/env bash
# The stream of related tasks (docs/tasks.md) on the embedded backbone: D-MoLE with and without transfer, then routing and transfer.
#
#     bash pipelines/related/run.sh              # seeds 0 to 2, into runs/related-0 ...
#     bash pipelines/related/run.sh 3 4          # other seeds
#
# When the script is started again, finished work is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ $# -eq 0 ]; then set -- 0 1 2; fi
bash pipelines/setup.sh
source .venv/bin/activate
source pipelines/sequence/stages.sh

shared=runs/related-shared runs=() without=()
for seed in "$@"; do
  run=runs/related-$seed
  everywhere=(--run "$run" --shared "$shared" --config pipelines/related/dmole.toml)
  reading=("${everywhere[@]}")
  training=("${reading[@]}" --seed "$seed")
  five_stages
  for routing in top-1 oracle; do
    dmole evaluate "${reading[@]}" --stage all --routing "$routing"
  done
  runs+=("$run")

  run+=-no-transfer
  everywhere=(--run "$run" --shared "$shared" --config pipelines/related/dmole.toml)
  reading=("${everywhere[@]}")
  dmole allocate "${everywhere[@]}"
  dmole train-task "${reading[@]}" --seed "$seed" --no-transfer
  dmole evaluate "${reading[@]}" --stage all
  without+=("$run")
done
python pipelines/related/measure.py "${runs[@]}" --without "${without[@]}" --shared "$shared"
