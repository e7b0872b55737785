#!/usr/bin/env bash
# What only a GPU can show of this toolkit, in at most 8 minutes on one: numbers against the CPU,
# memory, waits for the device, training in each precision, speed. Ends with a table for
# docs/benchmarks.md. Without a GPU it says so and exits with 2.
#   ./scripts/gpu_check.sh [--out DIR] [--minutes 8] [--steps NAME ...]
# Started again, it does what is missing; --out's folder remembers the rest (default runs/gpu_check).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-$PWD/.venv/bin/python}
[ -x "$PYTHON" ] || PYTHON=$(command -v python) || { echo "error: no Python; set PYTHON" >&2; exit 2; }
exec "$PYTHON" -m benchmarks.gpu_check "$@"
