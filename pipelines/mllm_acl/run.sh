#!/usr/bin/env bash
# The four abilities of MLLM-ACL, in their order and with the settings of dmole.toml, with D-MoLE; docs/benchmarks.md says where the files belong:
#
#     bash pipelines/mllm_acl/run.sh --backbone FOLDER --data-root DIR         # all options: pipelines/sequence/benchmark.sh
set -euo pipefail
bash "$(dirname "${BASH_SOURCE[0]}")/../sequence/benchmark.sh" mllm_acl "$@"
