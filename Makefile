# Each target does all its own set-up, in .venv; the second run is quick.
#
# requirements-demo.txt pins torch==2.13.0. Where PyPI's build of it brings CUDA along and that is not wanted, set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.

PYTHON  ?= python3
AARCH64 ?= 1
BROWSER ?= 1
JOBS    ?= 2
ifeq ($(shell command -v nvidia-smi),)
# No GPU: code for those alone that the tests read. `pip install .` builds for all, in twice the time.
export FASTINIT_CUDA_ARCHITECTURES ?= 90,100
endif
VENV    := .venv
BIN     := $(VENV)/bin
STAMPS  := $(VENV)/.stamps

CXX_FILES := $(wildcard csrc/*.cpp csrc/*.cu csrc/*.cuh csrc/*.h csrc/*/*.h \
	tests/support/*.h tests/support/cuda_shim/* tests/support/emulated/*)

.PHONY: help demo test test-distributed test-versions wheel no-aarch64 docs zoo bench startup lint format build clean
.DELETE_ON_ERROR:
# Several targets install into the one environment: with -j, too, one at a time.
.NOTPARALLEL:

help:
	@echo "make demo    build two real models, eagerly and with torch_fastinit; print a table and write demo.png"
	@echo "make test    the whole test suite, doctests and the documentation's snippets; AARCH64=0 leaves out the"
	@echo "             tests in an emulated aarch64, and the 118 MB that they fetch, BROWSER=0 those of the site in a"
	@echo "             browser, and its 90 MB; JOBS=4 takes four processes, not two"
	@echo "make test-distributed"
	@echo "             of these, the tests of sharded models, on ranks that are processes of this machine"
	@echo "make test-versions"
	@echo "             its fast half under each torch and Python that the package promises: an hour or two, and 8 GB to fetch"
	@echo "make wheel   a wheel for this Python, in dist/"
	@echo "make docs    the documentation as a site, in build/site; to read it: python3 -m http.server -d build/site"
	@echo "make zoo     every transformers architecture of at most 40 million parameters, against eager construction;"
	@echo "             ARGS='--jobs 2' takes two processes, ARGS=--resume goes on after an interruption"
	@echo "make bench   fills and models against torch, side by side: tables, JSON and pictures in build/"
	@echo "make startup from process start to a ready model, by five ways of building it, checked: the same"
	@echo "make lint    ruff, mypy and clang-format, changing nothing"
	@echo "make format  ruff and clang-format, changing files"
	@echo "make clean   remove what was built (not .venv)"

demo: $(STAMPS)/cpu
	$(BIN)/python -m examples.demo $(ARGS)

test: build $(STAMPS)/docs $(if $(filter 0,$(AARCH64)),no-aarch64,$(STAMPS)/aarch64) \
		$(if $(filter 0,$(BROWSER)),,$(STAMPS)/chromium)
	AARCH64=$(AARCH64) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-distributed: build
	$(BIN)/python -m pytest tests/distributed $(ARGS)

test-versions: $(STAMPS)/requirements
	$(BIN)/python tools/versions.py --markdown build/versions.md $(ARGS)

# The tag is that of this machine's glibc. .github/workflows/release.yml builds in an image with an old one.
wheel: $(STAMPS)/requirements
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/wheel/*.whl

no-aarch64:
	@echo "AARCH64=0: the tests in an emulated aarch64 will be skipped"

docs: $(STAMPS)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

zoo: build
	PYTHONPATH=tests $(BIN)/python -m models.zoo.zoo --markdown build/zoo.md $(ARGS)

bench: build
	$(BIN)/python -m benchmarks.bench --json build/bench.json --markdown build/bench.md --plots build/plots $(ARGS)

startup: build
	$(BIN)/python -m benchmarks.startup --json build/startup.json --markdown build/startup.md \
		--picture build/startup.svg $(ARGS)

lint: $(STAMPS)/requirements
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(STAMPS)/requirements
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist *.egg-info torch_fastinit/_C.*.so $(STAMPS)/package $(STAMPS)/cpu

# Set-up ---------------------------------------------------------------------------------------------------------------

build: $(STAMPS)/package

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "torch_fastinit needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/demo: requirements-demo.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' $<)"
	$(BIN)/python -m pip install --quiet -r $<
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/requirements: requirements-dev.txt $(STAMPS)/demo
	$(BIN)/python -m pip install --quiet -r $<
	@touch $@

# What tests/kernels/test_neon.py compiles with and runs in, 118 MB to fetch; where that cannot be, those tests are skipped and say so.
$(STAMPS)/aarch64: tools/aarch64.sh tools/debian.sh | $(BIN)/python
	@mkdir -p $(STAMPS)
	@if tools/aarch64.sh $(VENV)/aarch64; then touch $@; else echo "no emulated aarch64: its tests will be skipped"; fi

# The site alone, which reads the sources and imports nothing of them, needs no torch.
$(STAMPS)/docs: requirements-docs.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r $<
	@mkdir -p $(STAMPS) && touch $@

# The browser of tests/repo/test_site.py, 90 MB to fetch where there is none on PATH.
$(STAMPS)/chromium: tools/chromium.sh tools/debian.sh | $(BIN)/python
	@mkdir -p $(STAMPS)
	@if tools/chromium.sh $(VENV)/chromium; then touch $@; else echo "no browser: the tests of the site in one will be skipped"; fi

# The installed package is this folder: only what the build reads, and the metadata, ask for a new installation.
SOURCES := setup.py pyproject.toml $(CXX_FILES)
INSTALL := $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .

$(STAMPS)/package: $(SOURCES) $(STAMPS)/requirements
	$(INSTALL)
	@touch $(STAMPS)/cpu $@

# What `make demo` calls. Where nothing was built before, without the kernels for CUDA: those take longer to build than
# everything else.
$(STAMPS)/cpu: $(SOURCES) $(STAMPS)/demo
	$(if $(wildcard $(STAMPS)/package),,FASTINIT_CUDA=0) $(INSTALL)
	@touch $(wildcard $(STAMPS)/package) $@
