# One command each; every target sets up what it needs. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
WIRE := tests/wire/aws/clients
FIREWORKS := .venv-fireworks
FIREWORKS_WIRE := tests/wire/fireworks/clients
SEED ?= 0
# Processes of `make test`. Files are dealt in order, so that the long ones start early.
WORKERS ?= 2
DATA ?=
# The CPU build. On a CUDA machine install a CUDA build of the same version into the environment
# first and call `make setup TORCH=` (README, "On a GPU").
TORCH ?= torch==2.13.0

.PHONY: help setup fmt check test wire wire-long wire-demo wire-fireworks wire-fireworks-long environments browser contact-sheet gpu bench docs serve demo clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(VENV)/.ready  ## create the environment

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(TORCH))
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[torch,mlflow,s3,parquet,wandb,dev]'
	touch $@

fmt: setup  ## format the code and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup  ## format, lint, strict types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup  ## the whole suite, but for GPU tests; WORKERS=1 in one process
	$(BIN)/pytest -m 'not gpu' -n $(WORKERS) --dist loadfile --no-loadscope-reorder

$(CLIENTS)/.ready: $(WIRE)/requirements.txt $(WIRE)/constraints.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check -r $(WIRE)/requirements.txt
	touch $@

environments: $(CLIENTS)/.ready $(FIREWORKS)/.ready $(VENV)/.browser  ## create all of them

wire: setup $(CLIENTS)/.ready  ## the real AWS clients against a real server, in an environment of their own
	PYTHONPATH=. $(CLIENTS)/bin/pytest -c $(WIRE)/pytest.ini -n $(WORKERS) --dist loadfile $(WIRE)

wire-long: setup $(CLIENTS)/.ready  ## the rest of them: docs/sagemaker.md, block by block
	PYTHONPATH=. $(CLIENTS)/bin/pytest -c $(WIRE)/pytest.ini -m long $(WIRE)

wire-demo: setup $(CLIENTS)/.ready  ## the demo by the sagemaker SDK: train, then base against tuned, paired
	PYTHONPATH=. $(CLIENTS)/bin/python -W ignore -m examples.aircraft_inspection.sagemaker_demo

$(FIREWORKS)/.ready: $(FIREWORKS_WIRE)/requirements.txt $(FIREWORKS_WIRE)/constraints.txt
	test -x $(FIREWORKS)/bin/python || $(PYTHON) -m venv $(FIREWORKS)
	$(FIREWORKS)/bin/pip install --quiet --disable-pip-version-check -r $(FIREWORKS_WIRE)/requirements.txt
	touch $@

# Without the variable, litellm looks for a newer price list on the internet when it is imported.
wire-fireworks: setup $(FIREWORKS)/.ready  ## eval-protocol and fireworks-ai against a real server
	LITELLM_LOCAL_MODEL_COST_MAP=True PYTHONPATH=. \
	  $(FIREWORKS)/bin/pytest -c $(FIREWORKS_WIRE)/pytest.ini $(FIREWORKS_WIRE)

wire-fireworks-long: setup $(FIREWORKS)/.ready  ## the rest of them
	LITELLM_LOCAL_MODEL_COST_MAP=True PYTHONPATH=. \
	  $(FIREWORKS)/bin/pytest -c $(FIREWORKS_WIRE)/pytest.ini -m long $(FIREWORKS_WIRE)

$(VENV)/.browser: $(VENV)/.ready tests/browser/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/browser/requirements.txt
	command -v chromium || (apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium)
	touch $@

browser: setup $(VENV)/.browser  ## the pages in Chromium, over a server with a job that runs
	$(BIN)/pytest -c tests/browser/pytest.ini tests/browser

contact-sheet: setup $(VENV)/.browser  ## the picture in docs/dashboard.md
	$(BIN)/python -m tests.browser.contact_sheet

gpu: setup  ## GPU tests; skipped with a reason where there is none
	$(BIN)/pytest tests/gpu

bench: setup  ## measure beside the peers; writes benchmarks/latest.json
	$(BIN)/python -m benchmarks

docs: setup  ## write the generated pages
	$(BIN)/python -m turnwise.domain.metrics > docs/metrics.md
	$(BIN)/python -m turnwise.settings > docs/settings.md
	$(BIN)/python -m turnwise.control.job_settings > docs/job-file.md
	$(BIN)/python -m turnwise.wire.aws.coverage > docs/aws-operations.md
	$(BIN)/python -m turnwise.diagnostics.page > docs/findings.md

serve: setup  ## start a server on this machine
	$(BIN)/turnwise serve

demo: setup  ## train the demo agent from nothing; SEED=7 takes another seed, DATA=DIR real tasks
	$(BIN)/python -m examples.aircraft_inspection.demo --seed $(SEED) $(if $(DATA),--data $(DATA))

clean:  ## remove the environment and the demo's output
	rm -rf $(VENV) $(CLIENTS) $(FIREWORKS) demo
