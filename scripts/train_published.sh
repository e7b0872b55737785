#!/usr/bin/env bash
# The two published trainings, on any number of GPUs and machines (without a GPU: on CPU processes).
# train_b6_rdtsc_unet_fold9.sh and train_b7_unet_fold0.sh are these two by name.
#   ./scripts/train_published.sh b6 [KEY=VALUE ...]    b6_rdtsc_unet, fold 9, 300 epochs
#   ./scripts/train_published.sh b7 [KEY=VALUE ...]    b7_unet, fold 0, 250 epochs
# Started again, it goes on where it stopped. They were published on 2 GPUs, with 6 (b6) and 8 (b7)
# images a step and a rate of 2e-4. Both are kept on 1, 2, 3, 6 (b6) or 1, 2, 4, 8 (b7) processes.
#
# From the environment:
#   NPROC           processes on this machine (default: the GPUs that torch sees, or 1)
#   NNODES          machines (default 1; under SLURM, the job's)
#   RDZV_ENDPOINT   HOST:PORT of one of them, needed with NNODES > 1
#   RDZV_ID         the same word on all of them (default: the SLURM job, or geopose)
#   MAX_RESTARTS    how often a failed process is restarted from the last checkpoint (default 3)
#   RUN_DIR         run directory (default runs/published_b6_fold9, runs/published_b7_fold0)
#   DRY_RUN=1       only print the command
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $1" >&2; exit 2; }

case "${1:-}" in
    b6) images=6 largest=3 name=b6_fold9
        protocol=(model=b6_rdtsc_unet optimizer=adamw_fp32 scheduler=plateau loss=huber_cos
            train=light_768 train.epochs=300 train.early_stopping=50 train.show=False
            train.loaders.train.num_workers=8 dataset.fold=9 seed=777) ;;
    b7) images=8 largest=4 name=b7_fold0
        protocol=(model=b7_unet optimizer=adamw scheduler=cos loss=huber_cos
            train=light_768 train.epochs=250 train.show=False
            train.loaders.train.num_workers=10 dataset.fold=0 seed=555) ;;
    *) fail "usage: ./scripts/train_published.sh b6|b7 [KEY=VALUE ...]" ;;
esac
shift

PYTHON=${PYTHON:-$PWD/.venv/bin/python}
[ -x "$PYTHON" ] || PYTHON=$(command -v python) || fail "no Python; set PYTHON, or make .venv"
# What torch sees, not what the machine has: CUDA_VISIBLE_DEVICES or an old driver may hide some.
NPROC=${NPROC:-$("$PYTHON" -c "import torch; print(max(1, torch.cuda.device_count()))")} ||
    fail "$PYTHON has no torch; set PYTHON, or make .venv"
NNODES=${NNODES:-${SLURM_NNODES:-1}}
for value in "$NPROC" "$NNODES"; do
    [[ $value =~ ^[1-9][0-9]*$ ]] || fail "NPROC and NNODES are whole numbers from 1, not $value"
done
processes=$((NPROC * NNODES))
[ $((images % processes)) -eq 0 ] || fail "$processes processes do not divide the protocol's \
$images images a step; choose NPROC and NNODES so that they do, or run train.py with a batch_size \
of your own"
each=$((images / processes))
batch=$((each < largest ? each : largest))
protocol+=("batch_size=$batch" "optimizer.accumulation=$((each / batch))")
# train.py multiplies the rate by the processes; the published 2e-4 was 1e-4 on two.
protocol+=("optimizer.lr=$("$PYTHON" -c "print(2e-4 / $processes)")")

if [ "$NNODES" -gt 1 ]; then
    [ -n "${RDZV_ENDPOINT:-}" ] || fail "NNODES=$NNODES needs RDZV_ENDPOINT=HOST:PORT"
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # restarted processes must not find the dead ones
    meeting=(--rdzv_backend=c10d "--rdzv_endpoint=$RDZV_ENDPOINT"
        "--rdzv_id=${RDZV_ID:-${SLURM_JOB_ID:-geopose}}")
else
    meeting=(--standalone)
fi
command=("$PYTHON" -m torch.distributed.run "--nnodes=$NNODES" "--nproc_per_node=$NPROC"
    "--max_restarts=${MAX_RESTARTS:-3}" "${meeting[@]}" train.py "${protocol[@]}"
    "experiment=${RUN_DIR:-runs/published_$name}" "$@")
if [ -n "${DRY_RUN:-}" ]; then
    echo "${command[*]}"
else
    exec "${command[@]}"
fi
