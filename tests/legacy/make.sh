#!/usr/bin/env bash
# Makes the fixtures of this folder with the jaxcolor that wrote their format: commit 390cce1 (2026-11-22), the last one
# before modules and config fields were renamed; first_export is of a4bad92 (2026-11-22), the first commit whose exports hold
# what 390cce1 looks for in the file of the weights.
#
#     make.sh CHECKOUT PYTHON WORK OUT
#
# CHECKOUT: a clone of jaxcolor at 390cce1, with its history. PYTHON: of an environment with its dependencies. WORK: a new
# scratch folder; every path that the fixtures name is relative to it. OUT: this folder.
#
# Weights differ in their last bits between processors, so a rerun gives files that are as good, not the same.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=$(realpath "$1") python=$(realpath -s "$2") work=$(realpath -m "$3") out=$(realpath -m "$4")
test "$(git -C "$repo" rev-parse --short=7 HEAD)" = 390cce1
mkdir -p "$work" "$out" && cd "$work"
export PYTHONPATH=$repo JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 JAX_COMPILATION_CACHE_DIR=$work/compiled MPLBACKEND=agg
unset XLA_FLAGS
jaxcolor() { local room=$1; shift; "$python" -m "jaxcolor.$room" "$@"; }
make() { "$python" "$here/make.py" "$@"; }

# Photos: 6 to train on, 2 for validation, of 2 classes, 40 x 48 pixels; their shards name no folder of this machine.
make photos
jaxcolor prepare photos --out=shards --size=40 --encoding=jpeg --workers=1 --quiet
sed -i "s|\"photos\": \"$work/photos\"|\"photos\": \"photos\"|" shards/dataset.json

small=(--config.data.shards=shards --config.data.crop=32 --config.data.read_threads=1 --config.train.log_every=4
    --config.train.batch_size=8 --config.train.eval_every=1000 --config.train.checkpoint_every=1000
    --config.train.grid_photos=2
    --config.train.cross_device_batch_norm=True)  # with it, the number of devices changes nothing but rounding

# 1. Regression, with a classifier, a moving average, augmentation, and values other than the defaults.
regression() {
    jaxcolor main --config="$repo/configs/ltbc.py" --workdir="$1" "${small[@]}" --config.train.steps="$2" \
        --config.name=regression --config.seed=5 \
        --config.model.width=0.025 --config.model.global_size=32 --config.model.classes=2 \
        --config.model.classifier_width=64 \
        --config.task.reduction=mean --config.task.alpha=0.1 --config.task.chroma_gain=1.25 --config.task.kernel_l2=0.001 \
        --config.optimizer.name=adam --config.optimizer.learning_rate=0.01 --config.optimizer.eps=1e-3 \
        --config.optimizer.weight_decay=0.01 --config.optimizer.warmup_steps=2 \
        --config.data.brightness=0.2 --config.data.resized_crop=0.5 --config.train.ema=0.9
}
regression regression 12
cp -r regression regression_resumed
regression regression_resumed 14
regression regression_undisturbed 14

# 2. Classes of colors: two runs of one kind.
color_classes() {
    jaxcolor main --config="$repo/configs/ltbc_compact.py" --workdir="$1" "${small[@]}" --config.train.steps=12 \
        --config.name=color_classes --config.seed="$2" --config.model.width=0.02 --config.model.global_size=32 \
        --config.task.rebalance=0.5 --config.task.answer_rebalance=0.6 --config.task.temperature=0.25 \
        --config.task.chroma_gain=1.1 \
        --config.optimizer.name=sgd --config.optimizer.learning_rate=0.1 --config.optimizer.momentum=0.9 \
        --config.optimizer.schedule=cosine --config.optimizer.clip_norm=1.0 --config.optimizer.warmup_steps=2 \
        --config.train.ema=0.0
}
color_classes color_classes 3
color_classes color_classes_other 4

# 3. The conditional GAN.
jaxcolor main --config="$repo/configs/cgan.py:stable" --workdir=cgan "${small[@]}" --config.train.steps=6 --config.seed=7 \
    --config.name=cgan --config.model.size=32 --config.model.width=0.03 --config.model.noise_size=4 \
    --config.optimizer.name=rmsprop --config.optimizer.learning_rate=0.01 --config.optimizer.eps=1e-3

# 4. Exported models.
jaxcolor exported color_classes exported --temperature=0.5 --answer-rebalance=0.3 --summary='A fixture.'
jaxcolor exported color_classes color_classes_other ensemble --mirror

# 5. A network with an extractor of random weights, which any run draws anew where its own file is missing (it is 224 MB).
jaxcolor main --config="$repo/configs/deepcolor.py:3" --workdir=deepcolor "${small[@]}" --config.train.steps=2 \
    --config.name=deepcolor --config.seed=7 --config.model.width=0.05 --config.extractor.weights=random

# 6. An export by an early commit: its config.json lacks the fields that came later (jaxcolor/weights/migration.py).
mkdir first && git -C "$repo" archive a4bad92 jaxcolor configs | tar -x -C first
(
    export PYTHONPATH=$work/first
    jaxcolor main --config=first/configs/ltbc_compact.py:classes --workdir=first_run "${small[@]}" --config.train.steps=12 \
        --config.name=first_export --config.seed=9 --config.model.width=0.02 --config.model.global_size=32 \
        --config.optimizer.name=sgd --config.optimizer.learning_rate=0.1 --config.optimizer.momentum=0.9 \
        --config.optimizer.clip_norm=1.0 --config.train.ema=0.0
    jaxcolor exported first_run first_export --summary='A fixture.'
    make expect first_export gray colored  # photos were shrunk by another filter then (1d74f34)
)

for model in regression color_classes cgan exported ensemble deepcolor; do make expect "$model"; done
make expect_resumed regression regression_resumed regression_undisturbed
find . -name commit_success.txt -exec sed -i "s|$work/||" {} +  # Orbax names the folder there, and does not read it
make pack "$out"
