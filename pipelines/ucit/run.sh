#!/usr/bin/env bash
# The six tasks of UCIT, in their order and with the settings of dmole.toml, with D-MoLE; docs/benchmarks.md says where the files belong:
#
#     bash pipelines/ucit/run.sh --backbone FOLDER --data-root DIR         # all options: pipelines/sequence/benchmark.sh
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/../sequence/benchmark.sh" ucit "$@"
