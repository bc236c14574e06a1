#!/usr/bin/env bash
# Debian's (or Ubuntu's) packages, with those that they need and that are not installed, unpacked in the folder given.
# Needs no root and changes nothing of the system.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: tools/debian.sh FOLDER PACKAGE..." >&2
    exit 2
fi
command -v apt-get dpkg-deb >/dev/null || { echo "there is no apt-get here" >&2; exit 1; }

rm -rf "$1"
mkdir -p "$1/debs" "$1/lists/partial"
root=$(cd "$1" && pwd)
shift
packages=("$@")
cd "$root/debs"
apt() { apt-get -q -o APT::Sandbox::User="$(id -un)" -o Dir::Cache="$root/debs" "${lists[@]}" "$@"; }
names() { apt --simulate --no-install-recommends install "${packages[@]}" | sed -n 's/^Inst \([^ ]*\) .*/\1/p'; }

# The system's lists of packages may be missing or too old: then with lists of our own.
lists=()
if ! { wanted=$(names) && apt download $wanted; } >"$root/log" 2>&1; then
    lists=(-o Dir::State::lists="$root/lists" -o Acquire::Retries=1 -o Acquire::http::Timeout=20)
    { apt update && wanted=$(names) && apt download $wanted; } >>"$root/log" 2>&1 || { cat "$root/log" >&2; exit 1; }
fi
for package in *.deb; do dpkg-deb --extract "$package" "$root"; done
cd "$root"
rm -rf debs lists
