#!/bin/sh
# Builds the site into the folder OUT. What it needs comes into an environment of its own.
set -eu
cd "$(dirname "$0")/.."
out=$1
tools=target/tools/docs
stamp="$tools/installed-from"
if [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$(cksum < docs/requirements.txt)" ]; then
    "${VENV:-.venv}/bin/python" -m venv --clear "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check -r docs/requirements.txt
    cksum < docs/requirements.txt > "$stamp"
fi
# Material for MkDocs says in several lines what it thinks of MkDocs' future. With --quiet, warnings would not count.
if ! said=$(NO_MKDOCS_2_WARNING=1 "$tools/bin/mkdocs" build --strict --site-dir "$out" 2>&1); then
    echo "$said" >&2
    exit 1
fi
