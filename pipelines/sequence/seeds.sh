#!/usr/bin/env bash
# The sequence with the upper bound for three seeds, then the summary of all runs: about 45 minutes on two cores.
#
#     bash pipelines/sequence/seeds.sh            # runs/seed-0 … runs/seed-2, then the tables
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

for seed in 0 1 2; do
  bash pipelines/sequence/run.sh --finetune --seed "$seed" --run "runs/seed-$seed" --shared runs/shared
done
.venv/bin/python pipelines/sequence/figures.py runs/seed-0 runs/seed-1 runs/seed-2 --shared runs/shared
