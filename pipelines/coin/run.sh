#!/usr/bin/env bash
# The eight tasks of CoIN, in their order and with their settings (dmole.toml), with D-MoLE; docs/benchmarks.md says where the files belong:
#
#     bash pipelines/coin/run.sh --backbone FOLDER --data-root DIR         # all options: pipelines/sequence/benchmark.sh
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/../sequence/benchmark.sh" coin "$@"
