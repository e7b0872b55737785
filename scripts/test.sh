#!/usr/bin/env bash
# Sets up .venv and runs every check: lint, types, tests. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# One thread a process: small train steps are many times slower when cores are shared. An attempt
# to download weights is an error, not a wait.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy geopose ./*.py
# Tests of one file share what is costly to make, so a file stays in one process. Files are handed out
# in the order of tests/conftest.py: those that take long first.
"$PYTHON" -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder "$@"
