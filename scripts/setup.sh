#!/bin/sh
# Everything that `make demo` and `make test` need, on a fresh Debian or Ubuntu machine or one
# where all is there already.
set -eu
cd "$(dirname "$0")/.."

need() { # need COMMAND-OR-FILE PACKAGE...
    if command -v "$1" >/dev/null 2>&1 || [ -e "$1" ]; then return 0; fi
    shift
    missing="$missing $*"
}

# why_not PYTHON: what is wrong with this interpreter, or nothing.
why_not() {
    command -v "$1" >/dev/null 2>&1 || {
        echo "there is no $1"
        return
    }
    "$1" - <<'END' 2>/dev/null || echo "$1 is no Python 3 that can be run"
import os, sys, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
if sys.version_info < (3, 11):
    print(f"{sys.executable} is Python {sys.version.split()[0]}, and 3.11 or newer is needed")
elif not sysconfig.get_config_var("Py_ENABLE_SHARED"):
    print(f"{sys.executable} has no shared library")
elif sysconfig.get_config_var("Py_GIL_DISABLED"):
    print(f"{sys.executable} is free-threaded, and pyspawner needs the global interpreter lock")
elif not os.path.exists(header):
    print(f"{sys.executable} has no headers: {header} is missing")
else:
    try:
        import ensurepip, venv
    except ImportError as error:
        print(f"{sys.executable} cannot make virtual environments: {error}")
END
}

missing=""
need cc gcc libc6-dev
need pkg-config pkg-config
need /usr/include/seccomp.h libseccomp-dev
need unshare util-linux
need ps procps
need newuidmap uidmap
need ip iproute2
need /usr/sbin/nft nftables
need strace strace
need bindfs bindfs
need jq jq
need curl curl
need /usr/bin/python3 python3 # the tests run it as other users
python=${PYTHON:-python3}
if [ -n "$(why_not "$python")" ]; then
    case $python in
    python3) # one that somebody has put before the system's may not do
        python=/usr/bin/python3
        [ -z "$(why_not $python)" ] || missing="$missing python3 python3-dev python3-venv"
        ;;
    python3.[0-9]*) missing="$missing $python-dev $python-venv" ;;
    esac
fi
if [ -n "$missing" ]; then
    echo "setup: installing Debian packages:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
reason=$(why_not "$python")
[ -z "$reason" ] || {
    echo "setup: $reason; name another interpreter: make PYTHON=..." >&2
    exit 1
}
command -v cargo >/dev/null 2>&1 || {
    echo "setup: cargo is missing; install Rust 1.91 or newer (rustup.rs)" >&2
    exit 1
}

# One environment per interpreter; the lock file tells when it is out of date.
venv=${VENV:-.venv}
real=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')
stamp="$venv/installed-from"
if [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$real $(cksum < tests/requirements.txt)" ]; then
    echo "setup: creating $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/requirements.txt
    echo "$real $(cksum < tests/requirements.txt)" > "$stamp"
fi

echo "setup: building"
PYO3_PYTHON=$(readlink -f "$venv/bin/python") cargo build --release --locked --quiet
