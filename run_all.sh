#!/usr/bin/env bash
# Set up, run the whole study, or test it. See --help.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'HELP'
usage: ./run_all.sh [options]           set up once, then run the study
       ./run_all.sh --test [--all]      set up once, then pass the tests

  --profile NAME    demo (default: generated images, minutes), lite (real images, CPU, hours),
                    full (the paper's settings, wants a GPU)
  --data DIR        folder that holds the datasets (default: data/raw, or $ULTRASEG_DATA)
  --only NN         one notebook, by its number; --from NN: this one and those after it
  --force           do finished runs anew
  --models A,B      train only these        --datasets A,B   on these
  --seeds 0,1       with these seeds        --epochs N       for so many epochs
  --recipe NAME     paper, strong, multiscale  --protocol NAME  clean, released
  --jobs N          runs side by side (default: one a core)
  --engine NAME     local (default: processes of this machine) or ray (the cluster at $RAY_ADDRESS)
  --test            pytest, then every notebook against its committed outputs
  --all             with --test: the slow tests too (browser, cluster, student copies, bfloat16)
  --help            this text

Results go to outputs/<profile>/ (or $ULTRASEG_OUTPUTS/<profile>/). A stopped study goes on where it
stopped when the same command, without --force, is given again.
HELP
}

fail() {
    echo "run_all.sh: $*" >&2
    exit 2
}

mode=run all=no
options=()
while [ $# -gt 0 ]; do
    case "$1" in
    --help | -h) usage; exit 0 ;;
    --test) mode=test ;;
    --all) all=yes ;;
    --force) options+=("$1") ;;
    --data)
        [ $# -ge 2 ] || fail "--data needs a folder"
        ULTRASEG_DATA=$(cd "$caller" && cd -- "$2" 2>/dev/null && pwd) || fail "--data: folder $2 not found"
        export ULTRASEG_DATA
        shift
        ;;
    --profile | --only | --from | --models | --datasets | --seeds | --epochs | --recipe | --protocol | --jobs | --engine)
        [ $# -ge 2 ] || fail "$1 needs a value; see --help"
        if [ "$1" = --profile ] && [ ! -f "ultraseg_lib/profiles/$2.yaml" ]; then
            fail "--profile: unknown $2; choose demo, lite or full"
        fi
        options+=("$1" "$2")
        shift
        ;;
    *) fail "unknown option $1; see --help" ;;
    esac
    shift
done
[ "$all" = no ] || [ "$mode" = test ] || fail "--all goes with --test; see --help"
[ "$mode" = run ] || [ ${#options[@]} -eq 0 ] || fail "${options[0]} does not go with --test"

# --- set-up: a virtual environment, or a conda one where only conda has a Python that is new enough

has_pip() {
    .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null 2>&1
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' 2>/dev/null; }

find_python() {
    local name
    for name in ${ULTRASEG_PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        if command -v "$name" >/dev/null && new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
}

make_environment() {
    local python conda
    python=$(find_python)
    if [ -n "$python" ]; then
        "$python" -m venv --clear .venv || fail "$python has no venv; on Debian or Ubuntu: apt install python3-venv"
        return
    fi
    conda=$(command -v mamba || command -v conda || true)
    [ -n "$conda" ] || fail "needs Python 3.11.4 or newer (found $(python3 --version 2>&1 || echo none)); install it, or conda"
    rm -rf .venv
    "$conda" env create --quiet --file environment.yml --prefix ./.venv
}

install_packages() {
    # not compiled: Python does that as it imports, and most of these files are never imported
    local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile)
    local torch
    torch=$(grep '^torch==' requirements.lock)
    if [ "$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
        # Without a GPU: the CPU build, from where PyTorch's own pages say, or the plain pin if that
        # source does not answer within seconds.
        "${pip[@]}" --timeout 5 --retries 0 --no-deps "$torch" \
            --index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
            echo "   the CPU build of PyTorch is out of reach; taking the default one"
    fi
    "${pip[@]}" --constraint requirements.lock --editable '.[deploy,gpu,cluster,app,dev]'
}

set_up() {
    local stamp=.venv/.installed wanted
    wanted=$(cat requirements.lock pyproject.toml | cksum)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    echo "== set-up (once, a few minutes)"
    [ -x .venv/bin/python ] && new_enough .venv/bin/python && has_pip || make_environment
    install_packages || fail "the packages could not be installed; read the lines above"
    echo "$wanted" >"$stamp"
}

set_up
PATH="$PWD/.venv/bin:$PATH"
export PATH PYTHONWARNINGS=ignore::DeprecationWarning
if [ "$mode" = test ]; then
    exec bash tests/run.sh "$all"
fi
exec python -m ultraseg_lib run ${options[@]+"${options[@]}"} # bash 3 knows no empty array
