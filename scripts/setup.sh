#!/bin/sh
# Everything that `make demo` and `make test` need, on a fresh Debian machine or one where
# all is there already.
set -eu
cd "$(dirname "$0")/.."

need() { # need COMMAND-OR-FILE PACKAGE...
    if command -v "$1" >/dev/null 2>&1 || [ -e "$1" ]; then return 0; fi
    shift
    missing="$missing $*"
}

missing=""
need cc gcc libc6-dev
need pkg-config pkg-config
need /usr/include/seccomp.h libseccomp-dev
need unshare util-linux
need newuidmap uidmap
need ip iproute2
need /usr/sbin/nft nftables
need strace strace
need bindfs bindfs
python=${PYTHON:-python3}
has_shared_library() {
    "$1" -c 'import sysconfig, sys, venv, ensurepip
sys.exit(not sysconfig.get_config_var("Py_ENABLE_SHARED"))' 2>/dev/null
}
if ! has_shared_library "$python"; then
    python=/usr/bin/python3
    has_shared_library "$python" && [ -e /usr/include/python3.11/Python.h ] ||
        missing="$missing python3 python3-dev python3-venv"
fi
if [ -n "$missing" ]; then
    echo "setup: installing Debian packages:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
has_shared_library "$python" || {
    echo "setup: $python has no shared library or no venv module; name one that has: make PYTHON=..." >&2
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
