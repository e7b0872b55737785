#!/usr/bin/env bash
# The published training of b7_unet: fold 0, 250 epochs. All else is said in train_published.sh.
exec "$(dirname "${BASH_SOURCE[0]}")/train_published.sh" b7 "$@"
