#!/usr/bin/env bash
# On a machine with a GPU: builds for it, measures, runs the GPU's tests, counts, in at most ten minutes whatever
# happens. Needs no network and installs nothing.
#
#     bash benchmarks/gpu.sh results/here                 writes gpu.json, gpu.md, stages.txt and the logs to the folder
#     PYTHON=/path/to/python bash benchmarks/gpu.sh ...   another Python than python3
#     LIMIT=300 bash benchmarks/gpu.sh ...                so many seconds for all of it, in place of 560
#     bash benchmarks/gpu.sh results/here --dry           on the CPU, with an extension that is built: no measurement
#
# Asks for torch, setuptools, numpy, a C++ compiler and nvcc. pybind11 may be torch's own copy, ninja may be missing
# (then the few commands run without it), pytest too (then gpu.py's rows alone are compared with the CPU's bits).
set -uo pipefail
started=$SECONDS
cd "$(dirname "$0")/.."
root=$PWD
out=${1:?usage: gpu.sh FOLDER [--dry]}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
dry=${2:-}
limit=${LIMIT:-560}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$out/stages.txt"

# stage NAME SECONDS COMMAND...: no longer than that, nor than is left of the whole. Its output goes to NAME.log.
stage() {
    local name=$1 most=$2 begun=$SECONDS left=$((limit - SECONDS + started))
    shift 2
    if [ "$left" -lt "$most" ]; then most=$left; fi
    if [ "$most" -lt 1 ]; then
        echo "$name: left out, no time" | tee -a "$out/stages.txt"
        return 124
    fi
    # What runs in the background would ignore SIGINT.
    timeout --signal=INT --kill-after=5 "$most" env --default-signal=INT "$@" >"$out/$name.log" 2>&1
    local status=$?
    echo "$name: status $status after $((SECONDS - begun)) of $most s" | tee -a "$out/stages.txt"
    return $status
}

# A copy, with triton_kernels where an installation would put it, and without pyproject.toml, which old setuptools
# cannot read and which makes errors of warnings.
mkdir "$work/tree" "$work/helpers"
cp -r setup.py csrc torch_fastinit triton_kernels tests benchmarks docs tools "$work/tree"
cp -r triton_kernels "$work/tree/torch_fastinit/triton_kernels"
if [ -n "$dry" ]; then
    mkdir -p "$work/tree/build"
    [ -d build/cuda_shim ] && cp -r build/cuda_shim "$work/tree/build"
else
    rm -f "$work/tree"/torch_fastinit/_C.*.so
fi

if ! timeout 60 "$python" -c 'import pybind11' 2>/dev/null; then
    mkdir "$work/helpers/pybind11"
    cat >"$work/helpers/pybind11/__init__.py" <<'EOF'
def get_include():  # torch brings a copy
    import importlib.util
    import pathlib

    return str(pathlib.Path(importlib.util.find_spec("torch").origin).parent / "include")
EOF
fi
if ! timeout 60 "$python" -m ninja --version >/dev/null 2>&1; then
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
cat >"$work/helpers/share.py" <<'EOF'
"""A pytest plugin: every so manieth of the chosen tests, SHARE=0/8 from the first on."""
import os

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    first, of = map(int, os.environ["SHARE"].split("/"))
    items[:] = items[first::of]
EOF
export PYTHONPATH=$work/helpers TRITON_CACHE_DIR=$work/triton
cd "$work/tree" || exit 1

if ls torch_fastinit/_C.*.so >/dev/null 2>&1; then
    echo "build: left out, there is one" | tee -a "$out/stages.txt"
else
    capability='import torch; print(*torch.cuda.get_device_capability(), sep="")'
    FASTINIT_CUDA_ARCHITECTURES=$(timeout 60 "$python" -c "$capability") || exit 1
    export FASTINIT_CUDA_ARCHITECTURES
    stage build 150 "$python" setup.py build_ext --inplace || { tail -30 "$out/build.log"; exit 1; }
fi
export PYTHONPATH=$work/tree:$work/tree/tests:$work/helpers
stage backends 60 "$python" -c 'import torch_fastinit as f; print(f.backends())' || { cat "$out/backends.log"; exit 1; }
cat "$out/backends.log"

# What takes the device with it costs a row; the rest goes on in another process.
resume=
end=$((SECONDS + 200))
for turn in 1 2 3 4 5; do
    stage "measure-$turn" $((end - SECONDS)) "$python" -m benchmarks.gpu "$out" $dry $resume \
        --seconds $((end - SECONDS - 15))
    [ $? = 3 ] || break
    resume=--resume
done
cat "$out/gpu.md"

# tests NAME SECONDS WHICH FILE...
tests() {
    local name=$1 seconds=$2 which=$3
    shift 3
    stage "$name" "$seconds" "$python" -m pytest "$@" -k "$which" --noconftest -v --tb=short -p share \
        -p no:cacheprovider --import-mode=importlib
    tail -1 "$out/$name.log"
}
if timeout 60 "$python" -c 'import pytest' 2>/dev/null; then
    SHARE=0/1 tests cuda 90 'not triton and not sanitizer' tests/kernels/test_gpu.py tests/kernels/test_gpu_packing.py
    shares=8
    if [ -n "$dry" ]; then shares=2; fi
    for n in $(seq 0 $((shares - 1))); do
        SHARE=$n/$shares tests "triton-$n" 110 'triton and not two_to_the_32' tests/kernels/test_gpu.py &
    done
    wait
else
    echo "tests: left out, no pytest" | tee -a "$out/stages.txt"
fi

ncu=$(command -v ncu || command -v /usr/local/cuda/bin/ncu)
if [ -n "$ncu" ]; then
    metrics=gpu__time_duration.sum,sm__inst_executed.sum,dram__bytes_write.sum,launch__registers_per_thread
    metrics=$metrics,sm__throughput.avg.pct_of_peak_sustained_elapsed,dram__throughput.avg.pct_of_peak_sustained_elapsed
    metrics=$metrics,smsp__issue_active.avg.pct_of_peak_sustained_active
    metrics=$metrics,sm__warps_active.avg.pct_of_peak_sustained_active
    stage counters 45 "$ncu" --csv --kernel-name regex:fill_ --launch-count 6 --metrics "$metrics" \
        "$python" -m benchmarks.gpu "$out" --launches
else
    echo "counters: left out, no ncu" | tee -a "$out/stages.txt"
fi

if timeout 60 "$python" -c 'import pytest' 2>/dev/null; then
    SHARE=0/1 tests sanitizer 300 sanitizer tests/kernels/test_gpu.py
fi

echo "== $((SECONDS - started)) s"
cd "$root" || exit 1
! grep -q 'status [1-9]' "$out/stages.txt"
