#!/usr/bin/env bash
# Creates the virtual environment .venv in the repository and installs this package into it, with the versions in
# constraints.txt. Does nothing if that was done before and pyproject.toml and constraints.txt have not changed since.
#
#     bash pipelines/setup.sh                     # PYTHON=python3.12 picks another interpreter (3.11 or newer)
#
# pip's own settings choose the package index: with PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS, pip can find torch's CPU build, which is
# ten times smaller than the one with CUDA.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

suits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

candidates=(python3 python3.13 python3.12 python3.11 python)
if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
interpreter=""
for candidate in "${candidates[@]}"; do
  if suits "$candidate"; then interpreter=$candidate && break; fi
done
if [ -z "$interpreter" ]; then
  echo "setup: no Python 3.11 or newer among: ${candidates[*]}" >&2
  echo "  -> install one, or name it: PYTHON=/path/to/python bash pipelines/setup.sh" >&2
  exit 1
fi

# An editable installation contains the path of this folder, so a moved clone has to be installed again.
stamp=.venv/installed
wanted=$("$interpreter" -c '
import hashlib, os, pathlib
versions = [pathlib.Path(name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
print(hashlib.sha256(b"\0".join([*versions, os.getcwd().encode()])).hexdigest())')
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  echo "setup: creating .venv with $("$interpreter" --version)"
  "$interpreter" -m venv .venv
fi
# Without bytecode: Python compiles the modules that are imported, which are few of all.
install() { .venv/bin/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt "$@"; }

# Torch first and with its exact version: as a dependency of another package, pip may choose a larger build.
torch=$(grep '^torch==' constraints.txt)
echo "setup: installing $torch, then dmole and its dependencies (once; a few minutes)"
install "$torch"
install -e ".[stream,dev]"
echo "$wanted" >"$stamp"
echo "setup: done; 'source .venv/bin/activate' adds dmole to the PATH"
