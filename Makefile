# `make demo` and `make test` are all that a newcomer needs. Caches lie outside the clone (TANDEM_CACHE).
SHELL := /bin/bash
PYTHON := .venv/bin/python
export HF_HUB_OFFLINE := 1
export PYTHONUNBUFFERED := 1

.PHONY: demo examples test lint unit docs chart engine browser screenshots local cluster faults test-faults bench \
	generate environment clean

environment:
	@tools/environment

demo: environment
	.venv/bin/tandem run -f examples/reviews/run.yaml --local --workdir runs/demo

# The papers' three tasks, small enough for this machine.
examples: environment
	$(PYTHON) examples/run_all.py

test: lint unit docs chart engine browser local cluster faults

lint: environment
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy -p tandem -p tandem_api -p tandem_operator -p tandem_trainer
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()" --no-logo
	$(PYTHON) -m tandem_api.v1alpha1.crd --check crds
	$(PYTHON) tools/gen_docs.py --check
	$(PYTHON) tools/gen_manifests.py --check

unit: environment
	$(PYTHON) -m pytest tests/unit -q -n auto

# The documentation's site, built with all warnings and tested.
docs: environment
	$(PYTHON) -m pytest tests/docs -q
	@echo "the site: build/site/index.html"

chart: environment
	$(PYTHON) -m pytest tests/chart -q

engine: environment
	$(PYTHON) -m pytest tests/engine -q -n 2 --dist loadfile

# The pages in a real Chromium, which comes from Debian; what drives it, from an environment beside .venv.
browser: environment
	$(PYTHON) -m pytest tests/browser -q

# The pictures of the documentation: the report and the live page in a browser, and the dashboard's panels with what a
# real Prometheus answered.
screenshots: environment
	$(PYTHON) tools/screenshots.py
	mkdir -p build
	TANDEM_DASHBOARD_DATA=$(CURDIR)/build/dashboard.json $(PYTHON) -m pytest tests/faults/test_prometheus.py -q
	"$$(tools/side-environment pictures)" tools/dashboard_picture.py build/dashboard.json

local: environment
	$(PYTHON) -m pytest tests/local -q

# A real Kubernetes on this machine, brought up for the tests and taken down after them.
cluster: environment
	$(PYTHON) -m pytest tests/cluster -q

# Faults on a real API server with scripted pods: the part for every day. `make cluster` has built what it needs.
faults: environment
	$(PYTHON) -m pytest tests/faults -q -n 4 --dist loadfile --no-loadscope-reorder

# All of them, on one machine too: hours.
test-faults: environment
	TANDEM_FAULTS=full $(PYTHON) -m pytest tests/faults tests/engine/test_faults.py tests/engine/test_kills.py \
		tests/engine/test_kill_search.py tests/engine/test_serving_faults.py -q

# A goal that is missed is said in the table; the other measurements are made nevertheless. About 40 minutes; the last
# one, with a real model, is most of it and goes on where it was stopped.
bench: environment
	-$(PYTHON) tests/bench/cli_start.py
	-$(PYTHON) tests/bench/evaluation_rate.py
	-$(PYTHON) tests/bench/prompt_search.py
	-$(PYTHON) tests/bench/racing_quality.py --problems 100
	-$(PYTHON) -m tests.bench.metrics_scrape
	-$(PYTHON) tests/bench/training_throughput.py
	-$(PYTHON) tests/bench/real_search.py --out runs/real-search

generate: environment
	$(PYTHON) -m tandem_api.v1alpha1.crd crds
	$(PYTHON) tools/gen_docs.py
	$(PYTHON) tools/gen_manifests.py

clean:
	rm -rf .venv runs build
