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
echo "== nbval"  # even and odd notebooks side by side
check() {
    OMP_NUM_THREADS=1 python -m pytest --nbval --nbval-current-env \
        --nbval-sanitize-with tests/nbval.cfg -q "$@"
}
log=$(mktemp)
check notebooks/?[02468]_*.ipynb >"$log" 2>&1 &
even=$!
status=0
check notebooks/?[13579]_*.ipynb || status=$?
wait "$even" || status=$?
cat "$log"
rm "$log"
exit "$status"
