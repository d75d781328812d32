#!/usr/bin/env bash
# What ./run_all.sh --test does: the demo study, then nbval (every notebook against its outputs) and pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
marker="not slow"
[ "${1:-no}" = yes ] && marker=""

echo "== demo study"
python -m ultraseg_lib study --profile demo
export OMP_NUM_THREADS=1

echo "== nbval and pytest, two files at a time (notebook 09 first: notebook 12 reads what it measures)"
exec python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -p no:cacheprovider \
    --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg \
    -m "$marker" --durations=15 notebooks/09_*.ipynb notebooks/0[0-8]_*.ipynb notebooks/1?_*.ipynb tests
