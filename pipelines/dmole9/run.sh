#!/usr/bin/env bash
# The nine tasks of D-MoLE, in their order and with their settings (dmole.toml), with D-MoLE; docs/benchmarks.md says where the files belong:
#
#     bash pipelines/dmole9/run.sh --backbone FOLDER --data-root DIR         # all options: pipelines/sequence/benchmark.sh
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/../sequence/benchmark.sh" dmole9 "$@"
