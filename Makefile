# make demo: environment, pipeline on the demo clips, metrics. make test: environment, the whole test suite.
.DELETE_ON_ERROR:
.PHONY: setup demo demo-ufo repro sweep bench-objective bench-lora preflight lint test test-nightly clean

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nothing is fetched at run time, and nothing is reported to anybody.
export HF_HUB_OFFLINE := 1
export DVC_NO_ANALYTICS := 1

setup: .venv/.ready

.venv/.ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11: run make PYTHON=python3.11 (or newer)"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

preflight: setup
	@framelora doctor

repro: preflight
	dvc repro

demo: repro
	@framelora metrics
	@echo "report: reports/index.html"

# The second demo, in projects of its own under runs/, so that params.yaml and reports/ here stay as they are: a style and
# a consistency adapter for the tiny EasyAnimate base, each alone and both together. Cells are shared.
demo-ufo: setup
	framelora fork runs/style --preset presets/demo_style.yaml
	cd runs/style && dvc repro train
	framelora fork runs/ufo --preset presets/demo_ufo.yaml
	rm -rf runs/ufo/models/start/style
	cp -r runs/style/models/adapter runs/ufo/models/start/style
	cd runs/ufo && dvc repro
	@cd runs/ufo && framelora metrics
	@echo "report: runs/ufo/reports/index.html"

# Rank by learning rate on the demo: latents and base renders are computed once. Needs a commit to stand on.
sweep: repro
	framelora sweep adapter.rank=4,8 train.learning_rate=5e-5,5e-4

# The FramerTurbo guide's training objective against ours on the demo's clips, in a few minutes.
bench-objective: setup
	python benchmarks/objective.py

# What an adapter learns on the demo in a few minutes; fails when it gains nothing on held-out clips.
bench-lora: preflight
	dvc repro encode
	python -m benchmarks.lora

lint: setup
	ruff check .
	ruff format --check .
	mypy

test: lint
	pytest -n 2 --dist loadgroup -m "not nightly"

test-nightly: lint
	pytest -n 2 --dist loadgroup

clean:
	rm -rf .venv .cells .state
