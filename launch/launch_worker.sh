#!/usr/bin/env bash
# What srun, mpirun or a pod runs, once for each process. Takes the flags of `python -m jaxcolor.main`.
#   PYTHON=...            the interpreter; .venv/bin/python of this checkout, or else python3, by default
#   JAXCOLOR_MODULE=...   the command; jaxcolor.runtime.cluster, say, prints which process this is and trains nothing
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
exec "$python" -m "${JAXCOLOR_MODULE:-jaxcolor.main}" "$@"
