#!/usr/bin/env bash
# Trains over hosts that have Open MPI and ssh, where there is no scheduler:
#   launch/mpirun.sh HOST:GPUS[,HOST:GPUS...] --config=configs/ltbc.py --workdir=RUN [FLAG...]
# The checkout and RUN have to be at the same place on all hosts. SIGTERM to mpirun saves, and ends; a training that died
# by itself starts again from its last checkpoint, MAX_RESTARTS (20) times at most.
set -uo pipefail
hosts=$1
shift
cd "$(dirname "$0")/.." || exit
stopped=''
trap 'stopped=yes; kill -TERM "$mpirun"' TERM INT
for ((start = 0; start <= ${MAX_RESTARTS:-20}; start++)); do
    # Rank 0 is on the first host. Not all of Open MPI's versions tell JAX of it.
    export JAX_COORDINATOR_ADDRESS="${hosts%%[:,]*}:$((61440 + RANDOM % 4096))"
    mpirun --host "$hosts" --bind-to none --mca odls_base_sigkill_timeout 120 -x JAX_COORDINATOR_ADDRESS \
        ${PYTHON:+-x PYTHON} ${JAXCOLOR_MODULE:+-x JAXCOLOR_MODULE} launch/launch_worker.sh "$@" &
    mpirun=$!
    wait "$mpirun"
    code=$?
    while kill -0 "$mpirun" 2> /dev/null; do wait "$mpirun"; code=$?; done  # a signal ends wait, not mpirun
    [ $code -le 1 ] || [ -n "$stopped" ] && break
    echo "mpirun.sh: mpirun ended with $code; starting again" >&2
done
exit "$code"
