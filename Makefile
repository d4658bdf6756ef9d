# Targets set up what they need; later calls find it done.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON_VENV := .venv/bin/python

.PHONY: help setup run test check stress torture bench bench-transfer packet ui lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with the packages for this machine (WP1_EXTRA=cpu|cuda overrides the choice)
	@requirements/install.sh

run: setup ## run E0 on the bundled model, on a GPU or on the CPU
	@$(PYTHON_VENV) -m wp1 $(ARGS)

test: setup ## all tests, also those with real engines on the CPU (ARGS="-k WORD" selects, ARGS="-n 0" uses one process)
	@$(PYTHON_VENV) -m pytest -n 2 $(ARGS)

check: setup ## ruff and pyright
	@$(PYTHON_VENV) -m ruff check . && $(PYTHON_VENV) -m ruff format --check . && $(PYTHON_VENV) -m pyright

stress: setup ## 10,000 handoffs with random aborts over transfer=ipc, without engines (ARGS="--device cuda" on a GPU); its scheduling next to vLLM's own scheduler
	@$(PYTHON_VENV) -m tests.stress.scheduler
	@$(PYTHON_VENV) -m tests.stress.ipc $(ARGS)

torture: setup ## real runs killed and disturbed in every way, on the CPU engine: 20 minutes (ARGS="--only NAME"); writes docs/reliability.md
	@$(PYTHON_VENV) -m tests.torture $(ARGS)

bench: setup ## wp1 against vLLM alone and vLLM's own benchmark, its load generator and its analysis; ratios, side by side
	@$(PYTHON_VENV) -m tests.bench $(ARGS)

bench-transfer: setup ## time KV transfers between engines with each connector, next to a plain copy (ARGS="--help" lists options)
	@$(PYTHON_VENV) -m tests.bench.transfer $(ARGS)

packet: setup ## one folder with a page of the experiments' runs in DIR=... (OUT=packet, ARGS=--partial)
	$(if $(DIR),,$(error DIR=FOLDER is missing: name the folder that has the runs, as in make packet DIR=outputs))
	@$(PYTHON_VENV) -m wp1.packet $(DIR) --out $(or $(OUT),packet) $(ARGS)

ui: setup ## MLflow's page on this machine, port 5000 (PORT=...)
	$(if $(shell launch/port_is_free.sh 127.0.0.1 $(or $(PORT),5000)),,$(error \
	  port $(or $(PORT),5000) is in use or is not a port: name another, as in make ui PORT=5001))
	@echo "MLflow starts at http://127.0.0.1:$(or $(PORT),5000) (about 20 s); choose 'Model training' at its top left"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true \
	  $(PYTHON_VENV) -m mlflow server --backend-store-uri "sqlite:///$(CURDIR)/mlflow.db" \
	  --default-artifact-root "$(CURDIR)/mlartifacts" --host 127.0.0.1 --port $(or $(PORT),5000) --workers 1

lock: setup ## remake the pins in requirements/
	@requirements/lock.sh

clean: ## remove .venv and tool caches; runs stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
