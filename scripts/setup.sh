#!/usr/bin/env bash
# Makes .venv from requirements.txt, or reuses it when it is complete and the pins have not changed.
# Sourced by the other scripts; leaves PYTHON set to the environment's interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

supported() {
    "$1" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

# The oldest first: every machine the measurements in docs were made on had 3.11.
find_python() {
    local candidate
    for candidate in "${GEOPOSE_PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        if [ -n "$candidate" ] && supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: Python 3.11, 3.12 or 3.13 not found; install one, or set GEOPOSE_PYTHON to its path" >&2
    exit 2
}

PYTHON="$PWD/.venv/bin/python"
stamp=.venv/requirements.installed
if ! { cmp -s requirements.txt "$stamp" && supported "$PYTHON"; }; then
    echo "Installing the pinned packages into .venv (once; a few minutes)" >&2
    rm -f "$stamp"
    if ! { supported "$PYTHON" && "$PYTHON" -c 'import pip' 2>/dev/null; }; then
        base_python=$(find_python)
        "$base_python" -m venv --clear .venv
    fi
    # catalyst's metadata has a malformed requirement of an extra, which pip refuses from 24.1 on.
    "$PYTHON" -m pip install --quiet --disable-pip-version-check 'pip<24.1'
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt
    # Both OpenCV wheels write the same cv2 folder. Without libGL only the headless one imports.
    if ! "$PYTHON" -c 'import cv2' 2>/dev/null; then
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
            "$(grep -o '^opencv-python-headless==[0-9.]*' requirements.txt)"
    fi
    cp requirements.txt "$stamp"
fi
export PYTHON
