#!/usr/bin/env bash
# Installs if needed, then checks style, types and behaviour. Arguments go to pytest:
#
#     bash pipelines/test.sh                      # everything
#     bash pipelines/test.sh -k golden            # only the tests whose name says so
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash pipelines/setup.sh

# Two test processes with one thread each; threads that wait by spinning would slow each other down.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
python=.venv/bin/python

$python -m ruff check .
$python -m ruff format --check .
$python -m mypy
$python -m pytest -n 2 --dist loadfile "$@"
