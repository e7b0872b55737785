#!/usr/bin/env bash
# The published training of b6_rdtsc_unet: fold 9, 300 epochs. All else is said in train_published.sh.
exec "$(dirname "${BASH_SOURCE[0]}")/train_published.sh" b6 "$@"
