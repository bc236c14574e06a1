#!/usr/bin/env bash
# On a machine with a GPU: builds, runs the GPU's tests, measures. Needs no network and installs nothing.
#
#     bash benchmarks/gpu.sh results/here                 writes gpu.json, gpu.md and the logs to the folder
#     PYTHON=/path/to/python bash benchmarks/gpu.sh ...   another Python than python3
#
# Asks for torch, setuptools, numpy, a C++ compiler and nvcc. pybind11 may be torch's own copy, ninja may be missing (then
# the few commands run one by one), pytest too (then equality is checked by gpu.py alone). Under 8 minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
out=${1:?usage: gpu.sh FOLDER [--dry]}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
dry=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
started=$SECONDS

# A copy, with triton_kernels where an installation would put it.
mkdir "$work/tree" "$work/helpers"
cp -r setup.py pyproject.toml README.md LICENSE csrc torch_fastinit triton_kernels tests benchmarks docs tools "$work/tree"
rm -f "$work/tree"/torch_fastinit/_C.*.so "$work/tree"/torch_fastinit/_C.py
cp -r triton_kernels "$work/tree/torch_fastinit/triton_kernels"

if ! "$python" -c 'import pybind11' 2>/dev/null; then
    mkdir "$work/helpers/pybind11"
    cat >"$work/helpers/pybind11/__init__.py" <<'EOF'
def get_include():  # torch brings a copy
    import importlib.util
    import pathlib

    return str(pathlib.Path(importlib.util.find_spec("torch").origin).parent / "include")
EOF
fi
if ! "$python" -m ninja --version >/dev/null 2>&1; then
    mkdir "$work/helpers/ninja"
    : >"$work/helpers/ninja/__init__.py"
    cat >"$work/helpers/ninja/__main__.py" <<'EOF'
"""Runs the build.ninja that setup.py writes: rules, builds with flags of their own, the last build last."""
import concurrent.futures
import os
import re
import subprocess
import sys

os.chdir(sys.argv[sys.argv.index("-C") + 1])
names, rules, builds, last = {}, {}, [], None
for line in open("build.ninja").read().splitlines():
    if line.startswith("rule "):
        last = rules[line.split()[1]] = {}
    elif found := re.fullmatch(r"build (\S+): (\S+) (.*)", line):
        last = {"out": found[1], "rule": found[2], "in": found[3]}
        builds.append(last)
    elif found := re.fullmatch(r"(\s*)(\w+) = (.*)", line):
        (last if found[1] else names)[found[2]] = found[3]


def run(build):
    values = {**names, "flags": "", **build}
    command = re.sub(r"\$(\w+)", lambda m: values[m[1]], rules[build["rule"]]["command"])
    return subprocess.run(command.replace("$$", "$"), shell=True).returncode


with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    failed = any(pool.map(run, builds[:-1]))
sys.exit(1 if failed else run(builds[-1]))
EOF
fi
export PYTHONPATH=$work/helpers

echo "== build"
cd "$work/tree" || exit 1
"$python" setup.py build_ext --inplace >"$out/build.log" 2>&1 || { tail -30 "$out/build.log"; exit 1; }
echo "built in $((SECONDS - started)) s"
export PYTHONPATH=$work/tree:$work/tree/tests
"$python" -c 'import torch_fastinit as f; print(f.backends())' || exit 1

status=0
if [ -n "$dry" ] || "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    if "$python" -c 'import pytest' 2>/dev/null; then
        echo "== tests"
        timeout 240 "$python" -m pytest tests/kernels/test_gpu.py --noconftest -q -o addopts=--import-mode=importlib -p no:cacheprovider \
            >"$out/tests.log" 2>&1 || status=$?
        tail -15 "$out/tests.log"
    else
        echo "== no pytest: equality is checked by gpu.py alone" | tee "$out/tests.log"
    fi
    echo "== speed"
    timeout 180 "$python" -m benchmarks.gpu "$out" $dry || status=$?
else
    echo "this machine has no GPU that torch can use" >&2
    status=2
fi
echo "== $((SECONDS - started)) s, status $status"
cd "$root" || exit 1
exit $status
