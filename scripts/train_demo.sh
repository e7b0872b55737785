#!/usr/bin/env bash
# Trains the demonstration network that the package carries (--model demo), on synthetic scenes alone,
# and scores it on scenes that it has not seen. Its weights, config, range of gsd, recipe and hash go
# into geopose/demo/demo.pth; figures into runs/demo/score.json and from there into docs/models.md.
# It takes the best epoch on synthetic scenes; docs/benchmarks.md says what that costs on real ones.
#   ./scripts/train_demo.sh [MINUTES [SCENES [DSM.tif ...]]]
# MINUTES of training (default 90), after SCENES of each of the four cities (default 60) are made, and
# as many of each surface model that is given (0.5 m cells), with invented textures.
# What is already under runs/demo is reused; remove that folder to start over.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

minutes=${1:-90}
train=${2:-60}
shift $(($# < 2 ? $# : 2))
surfaces=()
[ $# -gt 0 ] && surfaces=(--dsm "$@" --dsm-cell 0.5)
test=6
seed=1        # scripts/quickstart.sh renders with seed 0: none of its scenes are among these
processes=$("$PYTHON" -c 'import os; print(min(4, len(os.sched_getaffinity(0))))')
out=runs/demo
data=$out/data
training=$out/training
model=geopose/demo/demo.pth
step() { echo "== $1" >&2; }

step "1/4 synthetic scenes: $train of each city to learn from, $test to score"
"$PYTHON" -m geopose.sample_city --out "$data" --train "$train" --test "$test" --size 640 \
    --preset real "${surfaces[@]}" --seed "$seed" --workers "$processes"
"$PYTHON" convert_j2k.py --data-dir "$data" --workers "$processes"

step "2/4 train for $minutes minutes on $processes processes"
OMP_NUM_THREADS=1 "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$processes" \
    train.py model=sample_unet loss=flow_first loss.losses.agl.loss.delta=15 optimizer=sample scheduler=sample train=sample_real \
    batch_size=8 dataset.data_dir="$data" \
    experiment="$training" train.max_minutes="$minutes"

step "3/4 export"
mkdir -p "$(dirname "$model")"
"$PYTHON" -m geopose.checkpoints export "$training/checkpoints_mean_r2_ema/best.pth" "$model" --force \
    --recipe "scripts/train_demo.sh $minutes: sample_unet, flow_first (heights: Huber of 15 m), sample_real (half the resolution), averaged weights of the best epoch, on $train synthetic scenes of \
640 x 640 px of each city and of $# surface models (preset real, seed $seed), $minutes minutes on $processes CPU processes"
"$PYTHON" -m geopose.checkpoints info "$model"

step "4/4 score on the scenes that it has not seen"
cat > "$out/demo.yaml" <<YAML
ensemble: {tta: d4, models: [$model]}
inference: {batch_size: 4, num_workers: 0}
submission_dir: $out
YAML
OMP_NUM_THREADS=1 "$PYTHON" submit_ddp.py "$out/demo.yaml" --data-dir "$data" --nproc "$processes"
"$PYTHON" evaluate.py "$out/submission" "$data/test_truth" --json "$out/score.json"
