# Vorta's commands. `make help` lists them; CI calls the same ones.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-done
KERNELS := $(VENV)/.kernels-done
REFERENCE := $(VENV)/.reference-done
WEB := $(VENV)/.web-done
GRPC_PORT ?= 50051
HTTP_PORT ?= 8000
DATA_DIR ?= data
BENCH_WORK ?= data/bench
H200_OUT ?= data/h200
H200_PACKAGES := data/h200-packages
SOURCES := clients/python:server:gateway:kernels:benchmarks
STAGES ?=
LIMIT ?= 540
PEERS := .venv-peers
PEER_PYTHON ?= $(wildcard $(PEERS)/bin/python)
STORES := .venv-stores
TENSORRT := .venv-trt
STORE_PYTHON ?= $(wildcard $(STORES)/bin/python)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

$(SETUP): requirements.lock pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" scripts/setup.sh

$(KERNELS): $(SETUP) requirements-torch.txt requirements-kernels.txt scripts/setup_kernels.sh
	@VENV="$(VENV)" scripts/setup_kernels.sh

$(REFERENCE): $(KERNELS) requirements-reference.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-reference.txt
	@touch $@

$(WEB): $(SETUP) scripts/setup_web.sh $(addsuffix /package-lock.json,clients/typescript console tests/web)
	@VENV="$(VENV)" scripts/setup_web.sh

.PHONY: setup
setup: $(SETUP) ## Install everything into .venv

.PHONY: run
run: $(SETUP) ## Set up and serve the default models (gRPC on 50051, HTTP on 8000)
	@exec $(BIN)/vorta serve --grpc-port $(GRPC_PORT) --http-port $(HTTP_PORT) --data-dir $(DATA_DIR)

.PHONY: test
test: $(KERNELS) ## Set up and run the tests with coverage; no network, no GPU, the same random cases each time
	@$(BIN)/python -m pytest -n auto -m "not slow and not reference and not tensorrt" --hypothesis-profile=ci --cov --cov-report=term --cov-fail-under=85

.PHONY: test-all
test-all: $(SETUP) $(REFERENCE) ## All tests, the slow ones and those against torch and transformers too, with fresh random cases
	@$(BIN)/python -m pytest -n auto
	@$(MAKE) test-web

.PHONY: test-web
test-web: $(WEB) ## Set up Node and Chromium and run the tests of the TypeScript client and the console
	@VENV="$(VENV)" scripts/test_web.sh

$(TENSORRT)/.setup-done: $(SETUP) requirements-tensorrt.txt scripts/setup_tensorrt.sh
	@PYTHON="$(BIN)/python" VENV="$(TENSORRT)" scripts/setup_tensorrt.sh

.PHONY: test-tensorrt
test-tensorrt: $(TENSORRT)/.setup-done ## Build TensorRT engines of small models; no GPU (downloads TensorRT-RTX, 140 MB)
	@$(TENSORRT)/bin/python -m pytest -m tensorrt -rs tests/server/compiler

.PHONY: lint
lint: $(SETUP) ## ruff, mypy --strict, buf lint, current stubs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/python scripts/generate.py --check

.PHONY: format
format: $(SETUP) ## Format the code and the protos
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/buf format -w

.PHONY: generate
generate: $(SETUP) ## Generate the stubs from the protos
	@$(BIN)/python scripts/generate.py

.PHONY: generate-web
generate-web: $(WEB) ## Generate the TypeScript stubs and the console's bundle
	@VENV="$(VENV)" scripts/generate_web.sh

.PHONY: breaking
breaking: $(SETUP) ## Check the protos for breaking changes against AGAINST (default: main)
	@$(BIN)/buf breaking --against '.git#ref=$(or $(AGAINST),main)'

.PHONY: lock
lock: $(SETUP) ## Resolve requirements.lock anew from pyproject.toml
	@scripts/lock.sh "$(BIN)"

.PHONY: verify-setup
verify-setup: $(SETUP) ## Check the installation: imports, artifacts, a served token
	@$(BIN)/python scripts/verify_setup.py

.PHONY: security-scan
security-scan: $(SETUP) ## Scan the code and the locked dependencies
	@scripts/security_scan.sh "$(BIN)"

.PHONY: train-mini
train-mini: $(SETUP) $(REFERENCE) ## Train vorta-mini from scratch (two CPU cores: about two hours)
	@$(BIN)/python -m vorta_bench.mini train --out data/vorta-mini

.PHONY: performance-test
performance-test: $(SETUP) ## Serve the default model and load it with locust over REST; then time single requests over gRPC
	@scripts/performance_test.sh "$(BIN)"
	@$(BIN)/python -m vorta_bench.wire single

.PHONY: peers
peers: ## Install what `make bench` compares with into .venv-peers and .venv-stores (builds llama.cpp: ten minutes)
	@$(PYTHON) -m venv $(PEERS)
	@CMAKE_ARGS="-DGGML_NATIVE=ON" $(PEERS)/bin/pip install --quiet --disable-pip-version-check -r requirements-peers.txt
	@$(PYTHON) -m venv $(STORES)
	@$(STORES)/bin/pip install --quiet --disable-pip-version-check -r requirements-stores.txt

.PHONY: bench
bench: $(SETUP) ## Compare engines, embeddings and vector search with their peers (`make peers` first)
	@$(BIN)/python -m vorta_bench.engine --model mini --work $(BENCH_WORK) --out benchmarks/results/engine_mini.json \
		$(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	@$(BIN)/python -m vorta_bench.engine --model half --work $(BENCH_WORK) --out benchmarks/results/engine_half.json \
		$(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	@$(BIN)/vorta compile server/vorta_server/models/vorta-mini $(BENCH_WORK)/mini-int8 --force
	@$(BIN)/vorta compile $(BENCH_WORK)/half $(BENCH_WORK)/half-int4 --precision int4 --force
	@$(BIN)/python -m vorta_bench.wire throughput --model $(BENCH_WORK)/mini-int8 --tokens 512 \
		--out benchmarks/results/wire_mini.json
	@$(BIN)/python -m vorta_bench.wire throughput --model $(BENCH_WORK)/half-int4 --tokens 192 \
		--out benchmarks/results/wire_half.json
	@$(BIN)/python -m vorta_bench.embedding quality --work $(BENCH_WORK) \
		--out benchmarks/results/embedding_quality.json $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	@$(BIN)/python -m vorta_bench.embedding throughput --work $(BENCH_WORK) \
		--out benchmarks/results/embedding_throughput.json $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	@$(BIN)/python -m vorta_bench.embedding single --work $(BENCH_WORK) --out benchmarks/results/embedding_single.json
	@for part in wire graph filters upserts; do $(BIN)/python -m vorta_bench.search $$part --work $(BENCH_WORK) \
		--out benchmarks/results/search_$$part.json; done
	@$(BIN)/python -m vorta_bench.search start --rows 1000000 --work $(BENCH_WORK) --out benchmarks/results/search_start.json
	@for part in codec rest client streams balance; do $(BIN)/python -m vorta_bench.gateway $$part \
		$(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON)) --out benchmarks/results/gateway_$$part.json; done
	@$(if $(STORE_PYTHON),$(BIN)/python -m vorta_bench.search peers --rows 20000 --work $(BENCH_WORK) \
		--peer-python $(STORE_PYTHON) --out benchmarks/results/search_peers.json,echo "no other stores: make peers")

# With the interpreter that has torch, as it is: a GPU host may have no network, and so no .venv.
.PHONY: h200
h200: ## Build, check and measure on this host's GPU with PYTHON, then the page; STAGES="engine wire" LIMIT=400 ARGS=--resume
	@status=0; tag=$$($(PYTHON) -c 'import sys; print("cp%d%d" % sys.version_info[:2])'); \
		PYTHONPATH=$(SOURCES):$(H200_PACKAGES)/$$tag$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m vorta_bench.h200 $(STAGES) --out $(H200_OUT) \
		--limit-s $(LIMIT) $(if $(STAGES),,--rounds 3) $(ARGS) || status=$$?; \
		test $$status = 2 || $(MAKE) report; exit $$status

.PHONY: report
report: ## Write the page of what make h200 measured: H200_OUT/report.html
	@PYTHONPATH=$(SOURCES) $(PYTHON) -m vorta_bench.report $(H200_OUT)

.PHONY: h200-packages
h200-packages: $(SETUP) ## Download what a GPU host without network lacks of the server's packages (Python 3.12, 44 MB)
	@scripts/h200_packages.sh $(BIN)/pip $(H200_PACKAGES)/cp312

.PHONY: deploy-staging
deploy-staging: ## Apply deploy/kubernetes/overlays/staging to the current kubectl context
	@scripts/deploy_staging.sh

.PHONY: clean
clean: ## Remove what was built and installed here
	@rm -rf $(VENV) $(PEERS) $(STORES) $(TENSORRT) dist {clients/typescript,console,tests/web}/node_modules .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
