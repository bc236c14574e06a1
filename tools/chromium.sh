#!/usr/bin/env bash
# A headless Chromium in the folder given, from Debian's packages, unpacked there (tools/debian.sh). One that is on PATH is
# not fetched. The test of the site (tests/repo/test_site.py) looks in .venv/chromium/bin and on PATH.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: tools/chromium.sh FOLDER" >&2
    exit 2
fi
for name in chromium-headless-shell chromium google-chrome; do
    ! command -v $name >/dev/null || exit 0
done
"$(dirname "$0")/debian.sh" "$1" chromium-headless-shell
cd "$1"
root=$PWD
mkdir bin

# It looks for its shared libraries where the packages would have put them.
libraries="$root/usr/lib/$(uname -m)-linux-gnu"
cat >bin/chromium-headless-shell <<END_OF_SCRIPT
#!/bin/sh
export LD_LIBRARY_PATH="$libraries:$libraries/pulseaudio"
exec "$root/usr/lib/chromium/chromium-headless-shell" "\$@"
END_OF_SCRIPT
chmod +x bin/chromium-headless-shell
# What was fetched works.
[ "$(bin/chromium-headless-shell --no-sandbox --disable-gpu --dump-dom 'data:text/html,<p>works' 2>>log | grep -c works)" = 1 ]
