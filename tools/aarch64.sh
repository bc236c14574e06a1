#!/usr/bin/env bash
# A C++ compiler for aarch64 and an emulator of it, in the folder given: Debian's (or Ubuntu's) packages, unpacked there.
# Needs no root and changes nothing of the system. What is on PATH already is not fetched. The tests that use the two
# (tests/kernels/test_neon.py) look in .venv/aarch64/bin and on PATH.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: tools/aarch64.sh FOLDER" >&2
    exit 2
fi
[ "$(uname -m)" != aarch64 ] || exit 0
packages=()
command -v aarch64-linux-gnu-g++ >/dev/null || packages+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64-static >/dev/null || command -v qemu-aarch64 >/dev/null || packages+=(qemu-user-static)
[ ${#packages[@]} -gt 0 ] || exit 0

"$(dirname "$0")/debian.sh" "$1" "${packages[@]}"
cd "$1"
root=$PWD
mkdir bin
find usr/bin -name 'qemu-*' ! -name 'qemu-aarch64*' -delete # emulators of everything else

for name in qemu-aarch64-static qemu-aarch64; do
    [ ! -x "usr/bin/$name" ] || ln -sf "../usr/bin/$name" bin/qemu-aarch64
done
if [ -x usr/bin/aarch64-linux-gnu-g++ ]; then
    # It looks for its own shared libraries, and for the C library, where the packages would have put them.
    cat >bin/aarch64-linux-gnu-g++ <<END
#!/bin/sh
export LD_LIBRARY_PATH="$root/usr/lib/$(uname -m)-linux-gnu"
exec "$root/usr/bin/aarch64-linux-gnu-g++" "--sysroot=$root" -idirafter "$root/usr/aarch64-linux-gnu/include" \\
    -B"$root/usr/aarch64-linux-gnu/lib" -L"$root/usr/aarch64-linux-gnu/lib" "\$@"
END
    chmod +x bin/aarch64-linux-gnu-g++
fi
# What was fetched works: a program, compiled, linked and run.
PATH="$root/bin:$PATH"
echo '#include <vector>
int main() { return std::vector<int>(3).size() != 3; }' >try.cpp
aarch64-linux-gnu-g++ -static try.cpp -o try
"$(command -v qemu-aarch64 || command -v qemu-aarch64-static)" ./try
rm try try.cpp
