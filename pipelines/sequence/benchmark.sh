#!/usr/bin/env bash
# A benchmark's sequence from its data to the report; called by the run.sh of dmole9, coin, ucit, mllm_dcl and mllm_acl in
# pipelines with the name of their folder, whose dmole.toml has the tasks and the settings.
#
#     bash pipelines/dmole9/run.sh --backbone FOLDER --data-root DIR
#
#     --backbone FOLDER    the model, a folder written by save_pretrained or a hub id
#     --data-root DIR      the benchmark's files, laid out as docs/benchmarks.md says
#     --run DIR            run directory                                     [runs/ and the folder's name]
#     --shared DIR         share profiles, features and routers between runs
#     --baseline METHOD    also this method, at the same budget; repeatable
#     --seed N, --device DEVICE                                              [0, auto]
#     --batch-size N       samples per step; the cards' are those of all GPUs of the publication's runs together
#     --epochs N           instead of the cards'
#
# A dmole on the PATH is used as it is; otherwise .venv of this clone is made first. When the script is started again, finished work is
# skipped.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
name=$1
shift

usage() {
  echo "$name/run.sh: $1" >&2
  echo "  -> bash pipelines/$name/run.sh --backbone FOLDER --data-root DIR (the head of pipelines/sequence/benchmark.sh lists all options)" >&2
  exit 2
}

run=runs/$name shared="" backbone="" data="" device=auto baselines="" recipe=(--seed 0)
while [ $# -gt 0 ]; do
  if [ $# -lt 2 ]; then usage "$1 needs a value"; fi
  case "$1" in
    --backbone) backbone=$2 ;;
    --data-root) data=$2 ;;
    --run) run=$2 ;;
    --shared) shared=$2 ;;
    --baseline) baselines+=" $2" ;;
    --device) device=$2 ;;
    --seed | --batch-size | --epochs) recipe+=("$1" "$2") ;;
    *) usage "unknown option $1" ;;
  esac
  shift 2
done
if [ -z "$backbone" ]; then usage "--backbone is missing"; fi
if [ -z "$data" ]; then usage "--data-root is missing"; fi

if ! command -v dmole >/dev/null; then
  bash "$root/pipelines/setup.sh"
  source "$root/.venv/bin/activate"
fi
source "$root/pipelines/sequence/stages.sh"
settings=(--run "$run" --config "$root/pipelines/$name/dmole.toml")
if [ -n "$shared" ]; then settings+=(--shared "$shared"); fi
everywhere=("${settings[@]}" --backbone "$backbone")
reading=("${everywhere[@]}" --data-root "$data" --device "$device")
training=("${reading[@]}" "${recipe[@]}")

# Problems of the data are found before hours of training.
dmole tasks check "${settings[@]}" --data-root "$data" --open-images 100
five_stages
for method in $baselines; do
  baseline "$method"
done
dmole report overview "${settings[@]}"
dmole report cost "${settings[@]}"
