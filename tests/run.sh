#!/usr/bin/env bash
# What ./run_all.sh --test does: the demo study, pytest, then every notebook against its outputs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
marker="not slow"
[ "${1:-no}" = yes ] && marker=""

echo "== demo study"
python -m ultraseg_lib study --profile demo
echo "== pytest"
python -m pytest tests ultraseg_lib --doctest-modules -q -m "$marker"
echo "== nbval, even and odd notebooks side by side"
export OMP_NUM_THREADS=1
check() {
    exec python -m pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg -q \
        notebooks/?["$1"]_*.ipynb
}
source tests/side_by_side.sh
side_by_side check 02468 13579
