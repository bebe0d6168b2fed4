# The commands of a working day. CONTRIBUTING.md says what each needs.
PYTHON ?= python

.PHONY: help fast test lint types layers bench

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

fast:  ## every test that needs neither torch nor a GPU; under a minute on two cores; needs .[dev]
	$(PYTHON) -m pytest -q --fast

test:  ## all tests, as the README has them; needs .[test]
	$(PYTHON) -m pytest -q

lint:  ## style; needs .[lint]
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:  ## mypy, over the tests too; needs .[test,lint]
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy --config-file tests/mypy.ini

layers:  ## which folder may import which; needs .[lint]
	PYTHONPATH=.types lint-imports --no-cache

bench:  ## the conversions that docs/speed.md has figures for; needs .[test]
	$(PYTHON) benchmarks/conversion.py

# campaign: goes here once there is one (large models, many machines: nothing for every day)
