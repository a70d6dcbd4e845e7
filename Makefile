# voice_rtc: `make run` and `make test` do all set-up on a fresh Debian or Ubuntu.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& { command -v $$p; break; }; done)
# What the browser tests need of the system: Chromium, and a library of Playwright's driver.
BROWSER_PACKAGES := $(shell command -v chromium >/dev/null || echo chromium) \
	$(shell PATH=$$PATH:/sbin:/usr/sbin ldconfig -p | grep -q 'libatomic\.so\.1' || echo libatomic1)
# Extras of pyproject.toml, e.g. `make run EXTRAS=kokoro`.
EXTRAS ?=
comma := ,
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test lint types bench soak constraints docs clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

run: $(VENV)/.installed ## install what is missing and serve on http://localhost:8080
	@exec $(BIN)/voice-rtc serve $(ARGS)

test: $(VENV)/.dev browser ## install what is missing and run every test
	$(BIN)/python -m pytest -q $(ARGS)

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy

bench: $(VENV)/.dev ## measure a call and write the figures to docs/benchmarks.md
	$(BIN)/python -m tools.bench_call $(ARGS)

soak: $(VENV)/.dev ## eight bots for a minute against a server of their own
	$(BIN)/python -m tools.load $(ARGS)

docs: $(VENV)/.dev ## write docs/configuration.md from the settings
	$(BIN)/voice-rtc config --format markdown > docs/configuration.md

clean: ## remove the virtual environment and all caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/pip:
	@if [ -z "$(PYTHON)" ]; then \
		echo "voice_rtc needs Python 3.11 or 3.12; install it or name one: make run PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@echo "voice_rtc: making $(VENV) with $(PYTHON)"
	@tools/make_venv "$(PYTHON)" "$(VENV)"

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "voice_rtc: installing Python packages into $(VENV), versions as in constraints.txt (about 600 MB)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "voice_rtc: installing Python packages with the development tools into $(VENV) (about 700 MB)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	@touch $@ $(VENV)/.installed

.PHONY: browser
browser:
ifneq ($(strip $(BROWSER_PACKAGES)),)
	@tools/apt_install $(BROWSER_PACKAGES) \
		|| echo "voice_rtc: the browser tests will be SKIPPED: they need $(strip $(BROWSER_PACKAGES))" >&2
endif

constraints: $(VENV)/.dev ## pin what is installed now into constraints.txt
	@{ echo "# Every package of a development install, pinned. Made by \`make constraints\`;"; \
	   echo "# change versions by editing pyproject.toml, installing, and running that again."; \
	   $(BIN)/python -m pip freeze --exclude-editable --exclude voice-rtc; } > constraints.new
	@mv constraints.new constraints.txt
