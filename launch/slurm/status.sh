#!/usr/bin/env bash
# Where a training stands: step, images/s, loss.  launch/slurm/status.sh [JOB...]     without a JOB: all jobs of yours
set -euo pipefail
cd "$(dirname "$0")/../.."
jobs=$(IFS=,; echo "$*")
if [ -n "$jobs" ]; then which=(--jobs="$jobs"); else which=(--name=jaxcolor --user="$USER"); fi
squeue --noheader "${which[@]}" --format='%i|%T|%M|%N|%k' | while IFS='|' read -r job state time nodes workdir; do
    echo "job $job $state $time ${nodes:-no node yet} $workdir"
    last=$(grep images_per_second "$workdir/metrics.jsonl" 2> /dev/null | tail -n 1) || true
    field() { sed -E "s/.*\"$1\": ([^,}]*).*/\1/" <<< "$last"; }
    [ -z "$last" ] || printf '  step %s, %.1f images/s, loss %.4g\n' "$(field step)" "$(field images_per_second)" "$(field loss)"
done
