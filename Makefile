# make serve      environment, artifacts, service on port 3000: make serve MODELS="florence-2-base hf:owner/name"
# make test       all checks: style, types, tests
# make test-long  the long tests, before a release: soak, widest shapes, many sequences, fuzzing, mutants
# make gpu-check  on a host with a GPU: the embedded models on it, each check with its aim: make gpu-check GPU_CHECK=--widths
# make proto      the code of the gRPC interfaces, from service/rpc/proto/*.proto, for the service and the client
# make lock       requirements.lock: what the image installs, by hash, after a change of requirements.txt
# make image      the container image `diptych`, by docker, podman or buildah: make image ENGINE=podman VARIANT=gpu MODELS="…"
# make bench      our service against what a user would write instead, at most 25 minutes; tables and history in loadtest/results
# make loadtest   Locust against a running service (URL=...), at most 6 minutes; report in loadtest/results/load

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALL ?= $(PY) -m pip install --quiet
EMBEDDED := florence-2-mini paligemma-mini
URL ?= http://127.0.0.1:3000

# Of the image; BUILD_OPTIONS go to the engine: --build-arg BASE_IMAGE=… and the others of the Containerfile.
ENGINE ?= $(notdir $(firstword $(shell which docker podman buildah)))
VARIANT ?= cpu
MODELS ?= $(EMBEDDED)
MODEL_LIST = $(subst $() $(),$(COMMA),$(strip $(MODELS)))
IMAGE ?= diptych
# What podman and buildah make by themselves, OCI's format, has no health check.
FORMAT = $(if $(filter docker,$(ENGINE)),,--format docker)
COMMA := ,

export BENTOML_HOME ?= $(CURDIR)/.bentoml
# Neither BentoML nor ONNX Runtime (1.32's builds do) tells its makers that it runs.
export BENTOML_DO_NOT_TRACK ?= True
export ORT_DISABLE_TELEMETRY ?= 1

.PHONY: serve export test test-long gpu-check check proto lock image bench loadtest clean

serve: $(VENV)/installed-export
	$(PY) -m export --if-changed $(MODELS)
	DIPTYCH_MODELS=$${DIPTYCH_MODELS:-$(MODEL_LIST)} $(PY) -m service

export: $(VENV)/installed-export
	$(PY) -m export --if-changed $(EMBEDDED)

test: $(VENV)/installed-dev $(VENV)/installed-export
	$(MAKE) --jobs=2 --output-sync check export
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: check export
	$(PY) -m pytest -m long
	$(PY) -m tests.support.mutation

gpu-check: export
	$(PY) -m export.gpu_check $(GPU_CHECK) $(EMBEDDED)

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy service runners imaging tasks export offline loadtest client deploy docs tests

proto: $(VENV)/installed-dev
	$(PY) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. service/rpc/proto/*.proto
	cp service/rpc/proto/vision_pb2.py service/rpc/proto/vision_pb2.pyi client/diptych_client/transports

# torch and ONNX Runtime differ by device; networkx, setuptools and sympy are what torch needs on every one.
lock: $(VENV)/installed-dev
	{ echo "# By \`make lock\`, for Python 3.11 on Linux."; { grep -v '^torch' requirements.txt; printf 'networkx\nsetuptools\nsympy\n'; } \
	    | $(PY) -m uv pip compile - --quiet --python-version 3.11 --python-platform linux --generate-hashes --no-header \
	    --no-annotate --no-emit-index-url --no-emit-package onnxruntime; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

image: $(VENV)/installed-export
	$(PY) -m export --if-changed $(MODELS)
	$(PY) -m export.bento build/bento $(MODELS)
	$(ENGINE) build $(FORMAT) --file deploy/container/Containerfile --tag $(IMAGE) --build-arg VARIANT=$(VARIANT) \
	    --build-arg MODELS=$(MODEL_LIST) $(BUILD_OPTIONS) build/bento

bench: $(VENV)/installed-bench
	$(PY) -m loadtest $(BENCH)

loadtest: $(VENV)/installed-loadtest
	$(PY) -m locust -f loadtest/load/locustfile.py --headless --only-summary --host $(URL) $(LOADTEST)

$(VENV)/installed-dev: client/pyproject.toml

$(VENV)/installed-%: requirements-%.txt requirements.txt | $(VENV)/bin/python
	$(INSTALL) -r $<
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	    || { echo "Python 3.11 to 3.14 is needed, and $(PYTHON) is not one: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	    || { echo "Python's venv is missing: apt-get install python3-venv" >&2; exit 1; }
	@echo "The first start installs its packages and exports the embedded models: about five minutes."
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) .bentoml build
