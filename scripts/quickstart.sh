#!/usr/bin/env bash
# From nothing to a scored submission on the built-in synthetic sample city, in about six minutes on
# two CPU cores. Everything it makes is under runs/quickstart; what is already there is reused.
#   ./scripts/quickstart.sh            first run, or go on where an earlier one stopped
#   ./scripts/quickstart.sh --fresh    start over
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

out=runs/quickstart
data=$out/data
training=$out/training
time_limit=330          # seconds for everything; training gets what the other steps leave
other_steps=50          # seconds that inference, evaluation and the picture may take afterwards
least_training=60

case "${1:-}" in
    "") ;;
    --fresh) rm -rf "$out" ;;
    *) echo "error: $1: unknown argument; usage: ./scripts/quickstart.sh [--fresh]" >&2; exit 2 ;;
esac

cores=$("$PYTHON" -c 'import os; print(min(4, len(os.sched_getaffinity(0))))')
SECONDS=0
step() { echo "== $1" >&2; }

step "1/7 sample city (synthetic)"
"$PYTHON" -m geopose.sample_city --out "$data" --train 60 --test 8 --size 512 --seed 0 --workers "$cores"

step "2/7 a first look, by the demonstration network"
image=$(ls "$data"/test/*_RGB.j2k | head -n 1)
gsd=$("$PYTHON" -c 'import csv, sys; print(next(r["gsd"] for r in csv.DictReader(open(sys.argv[1])) if r["id"] == sys.argv[2]))' \
    "$data/metadata.csv" "$(basename "$image" _RGB.j2k)")
"$PYTHON" predict.py "$image" --model demo --gsd "$gsd" --out "$out/first_look"
echo "look: $out/first_look/index.html" >&2

step "3/7 convert"
"$PYTHON" convert_j2k.py --data-dir "$data" --workers "$cores"

step "4/7 train"
# What the model follows from: with other settings, an earlier training is not the one to go on with.
settings=$(cat scripts/quickstart.sh configs/config.yaml configs/*/base.yaml configs/*/sample*.yaml \
    configs/loss/huber_cos.yaml configs/loss/huber_cos_flow.yaml "$data/sample_city.json" \
    <(echo "$cores") | cksum)
if [ "$(cat "$training/finished" 2>/dev/null)" = "$settings" ]; then
    echo "reusing the model in $training" >&2
else
    if [ "$(cat "$out/training.settings" 2>/dev/null)" != "$settings" ]; then
        rm -rf "$training"
        echo "$settings" > "$out/training.settings"
    fi
    # One process of one thread a core: measured faster than threads, and far less sensitive to
    # other programs on the machine. See docs/benchmarks.md.
    seconds=$((time_limit - other_steps - SECONDS))
    minutes=$("$PYTHON" -c "print(max($least_training, $seconds) / 60)")
    OMP_NUM_THREADS=1 "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$cores" \
        train.py model=sample_unet loss=huber_cos_flow optimizer=sample scheduler=sample train=sample \
        batch_size=4 dataset.data_dir="$data" experiment="$training" train.max_minutes="$minutes"
    echo "$settings" > "$training/finished"
fi

step "5/7 predict with test-time augmentation"
OMP_NUM_THREADS=1 "$PYTHON" submit_ddp.py configs/inference/sample.yaml --data-dir "$data" --nproc "$cores"

step "6/7 evaluate with the official score"
"$PYTHON" evaluate.py "$out/submission" "$data/test_truth" --json "$out/score.json"

step "7/7 draw"
"$PYTHON" -m geopose.output.compare --data-dir "$data" --predictions "$out/submission" \
    --truth "$data/test_truth" --out "$out/preview.png" --heading "Synthetic test scenes"

score=$("$PYTHON" -c "import json; print(f\"{json.load(open('$out/score.json'))['score']:.4f}\")")
epochs=$("$PYTHON" -c "import csv; print(sum(1 for _ in csv.DictReader(open('$training/metrics.csv'))))")
cat <<TEXT

Score on held-out synthetic scenes (mean R2 of height and flow): $score
  archive  $out/submission_compressed.tar.gz
  picture  $out/preview.png
  page     $out/first_look/index.html (one scene by the demonstration network, before the training)
  scores   $out/score.json
  model    $training/checkpoints_mean_r2/best.pth
  time     $SECONDS s after installation; training stops by the clock, here in epoch $epochs: a faster or
           less busy machine gets further and scores higher (docs/benchmarks.md)
TEXT
