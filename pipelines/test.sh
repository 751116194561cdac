#!/usr/bin/env bash
# Installs the package if needed, then runs ruff, mypy and pytest. Arguments are passed to pytest:
#
#     bash pipelines/test.sh                      # everything
#     bash pipelines/test.sh -k golden            # only the tests with golden in their name
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash pipelines/setup.sh

# Two test processes with one thread each; waiting threads must not spin, because that would slow down the others.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
python=.venv/bin/python

$python -m ruff check .
$python -m ruff format --check .
$python -m mypy
$python -m pytest -n 2 --dist loadfile "$@"
