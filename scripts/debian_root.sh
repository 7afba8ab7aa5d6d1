#!/bin/sh
# Runs a command in a Debian of another suite, for what this machine's own does not have. As root.
#
#   scripts/debian_root.sh SUITE COMMAND [ARGUMENT]...
#
# The system is made on first use, in target/roots/SUITE; its mirror is the one that apt uses
# here, or DEBIAN_MIRROR. This checkout, Rust's toolchain and cargo's downloads have the same
# paths in it as outside. The command's processes see this machine's own /proc, /sys and /dev.
set -eu
cd "$(dirname "$0")/.."
checkout=$PWD
suite=$1
shift
root=$checkout/target/roots/$suite

fail() {
    echo "debian_root: $*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "making a root of Debian $suite needs root"
command -v cargo >/dev/null 2>&1 || fail "cargo is missing; install Rust 1.91 or newer (rustup.rs)"
toolchain=$(rustc --print sysroot)
[ "$toolchain" != /usr ] ||
    fail "Rust is installed in /usr, which the root of Debian $suite has its own of; install it with rustup"
cargo_home=${CARGO_HOME:-$HOME/.cargo}

if [ ! -e "$root" ]; then
    echo "debian_root: making a root of Debian $suite in $root" >&2
    if ! command -v debootstrap >/dev/null 2>&1; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
    fi
    # Without a mirror, debootstrap takes Debian's own.
    mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 2>/dev/null | head -n 1)}
    rm -rf "$root.new"
    mkdir -p "$root.new"
    # shellcheck disable=SC2086 # the mirror is one word or none
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$root.new" $mirror >"$root.log" 2>&1 ||
        fail "debootstrap failed; see $root.log"
    mv "$root.new" "$root"
fi

# What it takes to reach package registries from here.
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
    [ ! -e "$file" ] || cp -L --remove-destination "$file" "$root$file"
done
apt-config dump Acquire | grep -v IndexTargets >"$root/etc/apt/apt.conf.d/as-outside"

unset PIP_FIND_LINKS # a folder that is not there
export checkout root toolchain cargo_home PATH="$toolchain/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# In a mount namespace of its own, so that nothing stays mounted. A changed root would not do:
# a process in one may not make user namespaces (user_namespaces(7)), hence pivot_root.
# shellcheck disable=SC2016 # expanded by the inner shell
exec unshare --mount --propagation private -- sh -euc '
    mount --rbind "$root" "$root"
    for folder in /dev /proc /sys "$checkout" "$toolchain" "$cargo_home"; do
        mkdir -p "$root$folder"
        mount --rbind "$folder" "$root$folder"
    done
    for folder in /run /tmp; do
        mount -t tmpfs -o mode=1777 tmpfs "$root$folder"
    done
    cd "$root"
    pivot_root . mnt
    umount --lazy /mnt
    cd "$checkout"
    exec "$@"
' sh "$@"
