#!/usr/bin/env bash
# Submits a training to Slurm:
#   launch/slurm/submit.sh --nodes=2 --gpus=8 --time=1-00:00:00 --config=configs/ltbc.py [--workdir=RUN] [FLAG...]
# --gpus is a node's; 0 trains on CPUs, one process a node. Every other FLAG is jaxcolor.main's, as in
# --config.train.batch_size=1024. --check trains nothing: every process says who it is and which GPU it would take.
# Partition, account and the like: sbatch's own variables, SBATCH_PARTITION, SBATCH_ACCOUNT, ...
set -euo pipefail
cd "$(dirname "$0")/../.."
nodes=1 gpus=8 time=1-00:00:00 config='' workdir='' flags=()
for argument in "$@"; do
    case $argument in
        --nodes=*) nodes=${argument#*=} ;;
        --gpus=*) gpus=${argument#*=} ;;
        --time=*) time=${argument#*=} ;;
        --config=*) config=${argument#*=} ;;
        --workdir=*) workdir=${argument#*=} ;;
        --check) export JAXCOLOR_MODULE=jaxcolor.runtime.cluster ;;
        -h | --help) sed -n '2,6s/^# \?//p' "$0" && exit ;;
        *) flags+=("$argument") ;;
    esac
done
[ -n "$config" ] || { echo 'submit.sh: which recipe? --config=configs/NAME.py' >&2; exit 1; }
if [ -z "$workdir" ]; then
    workdir=$(basename "$config") workdir=runs/${workdir/.py/} workdir=${workdir/:/-}  # NAME.py:VARIANT -> runs/NAME-VARIANT
fi
mkdir -p "$workdir"
shape=(--nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus")
[ "$gpus" -gt 0 ] || shape=(--nodes="$nodes" --ntasks-per-node=1 --gpus-per-node=0)
job=$(sbatch --parsable "${shape[@]}" --time="$time" --comment="$workdir" --output="$workdir/slurm-%j.out" \
    launch/slurm/train.sbatch --config="$config" --workdir="$workdir" "${flags[@]}")
echo "job:  $job ($nodes node(s) x $gpus GPU(s))"
echo "log:  $workdir/slurm-$job.out"
echo "see:  launch/slurm/status.sh $job"
echo "stop: launch/slurm/kill.sh $job    # saves first; the same submit.sh resumes there"
