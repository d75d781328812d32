#!/usr/bin/env bash
# What ./run_all.sh --test does: the demo study, pytest, then every notebook against its outputs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/side_by_side.sh
marker="not slow"
[ "${1:-no}" = yes ] && marker=""

echo "== demo study"
python -m ultraseg_lib study --profile demo
export OMP_NUM_THREADS=1

echo "== pytest in two halves: what runs studies or starts programs (and the claims, for balance), and the rest"
starting=(tests/test_{ablation,benchmark,command_line,engines,notebooks,study,teaching}.py)
starting+=(tests/test_{claims,widgets_in_browser}.py)
half() {
    local words=("${starting[@]}" -p no:cacheprovider)
    [ "$1" = starting ] || words=("${starting[@]/#/--ignore=}")
    exec python -m pytest -q -m "$marker" --durations=15 "${words[@]}"
}
side_by_side half starting others

echo "== nbval, even and odd notebooks side by side"
check() {
    exec python -m pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg -q \
        notebooks/?["$1"]_*.ipynb
}
side_by_side check 02468 13579
