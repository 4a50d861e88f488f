#!/usr/bin/env bash
# Ends a training for good, once it has saved the step that it is at:  launch/slurm/kill.sh JOB [SECONDS TO WAIT, 120]
set -euo pipefail
job=$1 patience=${2:-120}
state() { squeue --noheader --jobs="$job" --format=%T 2> /dev/null || true; }
[ -n "$(state)" ] || { echo "kill.sh: there is no job $job" >&2; exit 1; }
if [ "$(state)" = RUNNING ]; then
    scontrol update jobid="$job" requeue=0
    scancel --signal=TERM "$job"
    for ((i = 0; i < 2 * patience; i++)); do
        [[ "$(state)" =~ RUNNING|COMPLETING ]] || { echo "job $job has saved and ended"; exit 0; }
        sleep 0.5
    done
    echo "kill.sh: job $job did not end within $patience s: ending it; its last checkpoint stands" >&2
fi
scancel "$job"
