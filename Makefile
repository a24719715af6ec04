# Each target first makes what it needs. `make` alone says what there is.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Asked by running it: a name on the PATH may be a wrapper without a Python behind it.
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 15))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.10 python3.14 python3; do \
	$$python -c '$(USABLE)' >/dev/null 2>&1 && echo $$python && break; done)

PIP_INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input \
	--progress-bar off -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo ui test slow long faults browser chaos short-jobs pythons docs bench bench-short bench-batch lint constraints clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## Turn a file of prompts into pictures, through a real Airflow of its own
	@$(BIN)/python -m demo

ui: $(INSTALLED) ## Leave the demo running, to look at in a browser; Ctrl-C ends it
	@$(BIN)/python -m demo.ui

test: $(INSTALLED) ## Run all tests but the slow and the long ones
	@$(BIN)/python -m pytest -n auto --dist loadfile -m "not system and not packaging and not long"
	@$(BIN)/python -m pytest -m "(system or packaging) and not slow and not long"

slow: $(INSTALLED) ## Run the slower tests that CI runs as well: the matrix of faults, vendors, the morning, lost workers, a short chaos
	@$(BIN)/python -m pytest -m "slow and not long"

long: $(INSTALLED) chromium ## Run the long tests: short jobs, every Python, more kills, the browser
	@$(BIN)/python -m pytest -m long

faults: $(INSTALLED) ## Of the slower ones, the matrix of faults and the short chaos: a quarter of an hour
	@$(BIN)/python -m pytest -m slow tests/system/matrix tests/chaos

browser: $(INSTALLED) chromium ## Run the tests that drive a headless Chromium
	@$(BIN)/python -m pytest -m browser

# Debian's package; it is looked for, installed by root, and otherwise asked for.
.PHONY: chromium
chromium:
	@if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null \
		&& ! command -v google-chrome >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing Debian's chromium for the browser tests"; \
			apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
		else \
			echo "make: the browser tests need Chromium: install the package chromium" \
				"(apt-get install chromium), or run make as root" >&2; \
			exit 1; \
		fi; \
	fi

chaos: $(INSTALLED) ## Send 200 jobs through random faults, and account for each
	@$(BIN)/python -m tests.chaos --out build/figures/chaos.json

short-jobs: $(INSTALLED) ## Count first tries that fail, in six runs of 20 short jobs, beside a plain deferrable operator
	@$(BIN)/python -m pytest --short-jobs-runs 6 tests/system/test_short_jobs.py

pythons: $(INSTALLED) ## Try the wheel and the sdist on each Python that is here, with lowest and highest versions
	@$(BIN)/python -m pytest tests/packaging/test_pythons.py

docs: $(INSTALLED) ## Build the documentation into build/docs; a warning fails it
	@AIRFLOW_HOME=$(CURDIR)/build/airflow $(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

# One part that fails does not end the others; each leaves its figures as JSON.
define benchmarks
	@failed=; for part in .waits .alone "" .night; do \
		echo "python -m benchmarks$$part $(1)"; \
		$(BIN)/python -m benchmarks$$part $(1) --out "build/bench/benchmarks$$part.json" || failed="$$failed benchmarks$$part"; \
	done; test -z "$$failed" || { echo "make: not all of this has run:$$failed" >&2; exit 1; }
endef

bench: $(INSTALLED) ## Measure the provider beside what a user would pick instead, into build/bench: 32 minutes
	$(call benchmarks)

bench-short: $(INSTALLED) ## A short form of each part, which shows that it runs: four minutes
	$(call benchmarks,--short)

bench-batch: $(INSTALLED) ## Measure a night in one task: 1,000 jobs, 10,000 short ones, and 300 beside a bare batch
	@$(BIN)/python -m benchmarks.batch_night 1000x5
	@$(BIN)/python -m benchmarks.batch_night 10000x5
	@$(BIN)/python -m benchmarks.batch_night 300x20 --bare

lint: $(INSTALLED) ## Check style, format, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

constraints: $(INSTALLED) ## Pin the newest versions, for every supported Python, in constraints.txt
	@echo '# Exact versions for development. Made by `make constraints`; CONTRIBUTING.md says how.' > $(VENV)/pins
	@$(BIN)/uv pip compile pyproject.toml --quiet --extra dev --universal --python-version 3.10 --upgrade \
		--no-header --no-annotate >> $(VENV)/pins
	@mv $(VENV)/pins constraints.txt

clean: ## Remove everything that the other targets made
	rm -rf $(VENV) .demo build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# The stamp is the last thing made, so that an install that was cut short is taken up again. The build backend
# goes first, so that it too is a pinned one.
$(INSTALLED): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		if ! $(or $(PYTHON),false) -c '$(USABLE)'; then \
			echo "make: $(or $(PYTHON),no Python found): need Python 3.10 to 3.14 with its venv module;" \
				"name one with 'make PYTHON=/path/to/python3'" >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $(PYTHON)"; \
		$(PYTHON) -m venv --clear $(VENV); \
	fi
	@echo "Installing Airflow and the development tools into $(VENV): a minute or more the first time," \
		"and again only when pyproject.toml or constraints.txt changes"
	@rm -f $@
	@$(PIP_INSTALL) hatchling editables
	@$(PIP_INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@
