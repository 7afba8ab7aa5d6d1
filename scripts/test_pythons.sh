#!/bin/sh
# Runs the test suite, but for the virtual machine, on each version of CPython that is supported
# beside the one that CI has. As root.
#
#   scripts/test_pythons.sh [VERSION]...     for example 3.14 3.15; by default all
#
# An interpreter is this machine's own (`python3.N`, pyenv's, or a Debian package to be had here), or
# else the one of a Debian suite that has it, in a root of that suite. PYTEST_ARGUMENTS are pytest's.
set -eu
cd "$(dirname "$0")/.."

suite_of() { # suite_of VERSION: the Debian suite that packages it
    case $1 in
    3.13) echo trixie ;;
    3.14 | 3.15) echo sid ;;
    esac
}

is_shared() { # is_shared PYTHON
    "$1" -c 'import sysconfig, sys; sys.exit(not sysconfig.get_config_var("Py_ENABLE_SHARED"))' 2>/dev/null
}

find_python() { # find_python VERSION: one of this machine's own
    for python in "$(command -v "python$1" || true)" "$HOME"/.pyenv/versions/"$1".*/bin/python3; do
        # A shim of pyenv's is no interpreter.
        if [ -n "$python" ] && is_shared "$python"; then
            "$python" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    # shellcheck disable=SC2310
    if apt-cache show "python$1-dev" >/dev/null 2>&1; then echo "python$1"; fi
}

# In the place that has the interpreter: everything that the suite needs, and the suite.
# shellcheck disable=SC2016 # expanded by the inner shell
suite='
    scripts/setup.sh
    PYO3_PYTHON=$(readlink -f "$VENV/bin/python") cargo test --release --locked --quiet --bins
    "$VENV/bin/python" -m pytest -rs tests $PYTEST_ARGUMENTS
'

[ $# -gt 0 ] || set -- 3.12 3.13 3.14 3.15
status=0
summary=""
for version in "$@"; do
    folder=$PWD/target/pythons/$version
    mkdir -p "$folder"
    export PYTHON VENV="$folder/venv" CARGO_TARGET_DIR="$folder" PYTEST_ARGUMENTS="${PYTEST_ARGUMENTS:-}"
    PYTHON=$(find_python "$version")
    debian=$(suite_of "$version")
    echo "===== Python $version: ${PYTHON:-${debian:+python$version of Debian $debian}}"
    if [ -n "$PYTHON" ]; then
        command="sh"
    elif [ -n "$debian" ]; then
        PYTHON=python$version
        command="scripts/debian_root.sh $debian sh"
    else
        status=1
        summary="$summary
Python $version: NOT TESTED, since there is no python$version with a shared library here, nor in a suite of Debian"
        continue
    fi
    # shellcheck disable=SC2086 # a command's words
    { $command -euc "$suite" && echo 0 >"$folder/status" || echo 1 >"$folder/status"; } 2>&1 |
        tee "$folder/log"
    result="passed"
    if [ "$(cat "$folder/status")" != 0 ]; then
        status=1
        result="FAILED"
    fi
    figures=$(grep -E '^(=+ )?[0-9]+ (passed|failed).* in ' "$folder/log" | tail -n 1 | sed 's,[ =]*$,,; s,^[ =]*,,')
    release=$("$VENV/bin/python" --version 2>/dev/null || sed -n 's/^version = //p' "$VENV/pyvenv.cfg" 2>/dev/null || true)
    summary="$summary
Python $version: $result: ${figures:-no figures, see $folder/log} (${release#Python })"
done
echo "===== all versions$summary"
exit $status
