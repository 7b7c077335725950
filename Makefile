# make help       these lines
# make serve      environment, artifacts, service on port 3000: make serve MODELS="florence-2-base hf:owner/name"
# make test       all checks: style, types, tests; failed tests run once more, alone, and those that then pass are listed
# make test-long  the long tests, before a release: soak, widest shapes, many sequences
# make matrix     the unit tests under each Python that is supported and found: make matrix PYTHONS="3.12 3.14"
# make gpu-check  tests on this host's GPU, or on the fake CUDA runtime: make gpu-check GPU_MODELS="florence-2-mini …"
# make proto      the code of the gRPC interfaces, from service/rpc/proto/*.proto; the client links to the service's
# make lock       requirements.lock: what the image installs, by hash, after a change of requirements.txt
# make image      the container image `diptych`, by docker, podman or buildah: make image ENGINE=podman VARIANT=gpu MODELS="…"
# make bench      our service against what a user would write instead, 15 minutes; tables in laboratory/results
# make loadtest   Locust against a running service: make loadtest URL=… LOADTEST="--users 40"; report in build/load.html
# make release    all checks, then one version in every place, its changes described, a clean tree

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALL ?= $(PY) -m pip install --quiet
EMBEDDED := florence-2-mini paligemma-mini
URL ?= http://127.0.0.1:3000
# torch and ONNX Runtime for CUDA have packages of their own names: they are never installed over those for a CPU.
GPU := build/gpu
CARD := $(wildcard /dev/nvidia[0-9]* /dev/dxg)
GPU_MODELS ?= $(EMBEDDED)
# For two cores: a quarter of the time of a test is waiting. Each worker and its service need 2 GB.
WORKERS ?= 3

# Options of the image; PLATFORM may be linux/arm64, by default the machine's. BUILD_OPTIONS go to the engine: --build-arg
# BASE_IMAGE=… and the others of the Containerfile.
ENGINE ?= $(notdir $(firstword $(shell which docker podman buildah)))
# When the Makefile is read: with --jobs a prerequisite that checks it would run beside the installation.
ifeq ($(filter image,$(MAKECMDGOALS))$(strip $(ENGINE)),image)
$(error make image: found no docker, podman or buildah; install one, or name it: ENGINE=/path/to/it)
endif
VARIANT ?= cpu
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
MODELS ?= $(EMBEDDED)
COMMA := ,
override MODELS := $(subst $(COMMA), ,$(MODELS))
ifeq ($(origin MODEL),command line)
$(error MODEL is not an option: MODELS="$(MODEL)")
endif
MODEL_LIST = $(subst $() $(),$(COMMA),$(strip $(MODELS)))
IMAGE ?= diptych
# The default format of podman and buildah, OCI's, has no health check.
FORMAT = $(if $(filter docker,$(ENGINE)),,--format docker)

# Disable the telemetry of BentoML and of ONNX Runtime (1.32's builds have it).
export BENTOML_DO_NOT_TRACK ?= True
export ORT_DISABLE_TELEMETRY ?= 1

.PHONY: serve export test all-tests test-long matrix gpu-check check proto lock image release bench loadtest help clean

serve: $(VENV)/installed-export
	$(PY) -m export --if-changed $(MODELS)
	DIPTYCH_MODELS=$${DIPTYCH_MODELS:-$(MODEL_LIST)} exec $(PY) -m service

export: $(VENV)/installed-export
	$(PY) -m export --if-changed $(EMBEDDED)

# mypy takes one core for a minute, so the tests begin beside it
test: $(VENV)/installed-dev $(VENV)/installed-export
	$(MAKE) --jobs=2 check all-tests

all-tests: export
	$(PY) -m pytest --cache-clear -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	    || { [ $$? = 1 ] && $(PY) -m pytest -rp --last-failed --last-failed-no-failures none; }

test-long: check export
	$(PY) -m pytest -m long

matrix: $(VENV)/installed-dev
	VENV=$(VENV) .ci/matrix $(PYTHONS)

gpu-check: export $(if $(CARD),$(GPU)/installed,$(VENV)/installed-dev)
	GPU_MODELS="$(GPU_MODELS)" $(if $(CARD),$(GPU),$(VENV))/bin/python -m pytest -m gpu tests/gpu

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy service runners wire imaging tasks export laboratory offline loadtest client deploy docs tests

proto: $(VENV)/installed-dev
	$(PY) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. service/rpc/proto/*.proto

# torch and ONNX Runtime differ by device; torch needs networkx, setuptools and sympy on every one.
lock: $(VENV)/installed-dev
	{ echo "# By \`make lock\`, for Python 3.11 on Linux."; { grep -v '^torch' requirements.txt; printf 'networkx\nsetuptools\nsympy\n'; } \
	    | $(PY) -m uv pip compile - --quiet --python-version 3.11 --python-platform linux --generate-hashes --no-header \
	    --no-annotate --no-emit-index-url --no-emit-package onnxruntime; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

image: $(VENV)/installed-export
	$(PY) -m export --if-changed $(MODELS)
	$(PY) -m export.bento build/bento $(MODELS)
	$(ENGINE) build $(FORMAT) $(PLATFORM:%=--platform %) --file deploy/container/Containerfile --tag $(IMAGE) \
	    --build-arg VARIANT=$(VARIANT) --build-arg MODELS=$(MODEL_LIST) --build-arg VERSION=$(VERSION) $(BUILD_OPTIONS) build/bento

release: test
	$(PY) -m deploy.release

bench: $(VENV)/installed-bench
	$(PY) -m laboratory.bench

loadtest: $(VENV)/installed-loadtest
	mkdir -p build
	$(PY) -m locust -f loadtest/locustfile.py --headless --only-summary --html build/load.html --host $(URL) \
	    --users 16 --spawn-rate 16 --run-time 2m $(LOADTEST)

# The group of pyproject.toml, and what it is installed beside.
BESIDE = -r requirements.txt -e ./client
$(VENV)/installed-loadtest: BESIDE =

# pip 25.1 is the first that reads dependency groups.
$(VENV)/installed-%: pyproject.toml client/pyproject.toml requirements.txt | $(VENV)/bin/python
	$(PY) -m pip install --quiet 'pip>=25.1'
	$(INSTALL) $(BESIDE) --group $*
	touch $@

$(GPU)/installed: pyproject.toml requirements.txt requirements-gpu.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m venv --clear $(GPU)
	{ sed -E '/^(onnxruntime|torch)[=>]=/d' requirements.txt && cat requirements-gpu.txt; } > $(GPU)/requirements.txt
	$(GPU)/bin/python -m pip install --quiet 'pip>=25.1'
	$(GPU)/bin/python -m pip install --quiet --requirement $(GPU)/requirements.txt -e ./client --group gpu
	touch $@

$(VENV)/bin/python:
	@[ "$$(uname)" = Linux ] \
	    || { echo "The service requires Linux, not $$(uname): run the container (docs/operations.md)." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	    || { echo "Python 3.11 to 3.14 is needed, and $(PYTHON) is not one: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	    || { echo "Python's venv is missing: apt-get install python3-venv" >&2; exit 1; }
	@echo "The first start installs its packages and exports the embedded models: about five minutes."
	$(PYTHON) -m venv $(VENV)

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

clean:
	rm -rf $(VENV) .bentoml build
