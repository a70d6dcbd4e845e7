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
CONSTRAINTS := -c constraints.txt$(if $(EXTRAS), -c constraints-extras.txt)
# A second virtual environment for the tests that need PyTorch and RealtimeSTT.
EXTRAS_VENV := .venv-extras
TESTED_EXTRAS := dev,realtimestt,kokoro,gpu
EXTRAS_TESTS := $(wildcard tests/engines/test_realtimestt.py tests/engines/test_kokoro.py \
	tests/engines/test_kokoro_padded.py tests/engines/test_sdpa_encoder.py)
# PyAudio, which RealtimeSTT wants, is compiled.
PYAUDIO_NEEDS = packages=$$(tools/extras_packages "$(PYTHON)") \
	&& { [ -z "$$packages" ] || tools/apt_install $$packages; }
# RealtimeSTT requires torchaudio and never imports it; Kokoro's transformers imports it where it is.
# PyPI's is for CUDA: beside a CPU build of PyTorch it cannot be loaded, and Kokoro could not either.
without_broken_torchaudio = $(1)/bin/python -c 'import torchaudio' 2>/dev/null \
	|| $(1)/bin/python -m pip uninstall -q -y torchaudio
EXTRAS_NEED = $(if $(findstring realtimestt,$(EXTRAS)),$(PYAUDIO_NEEDS),true)
EXTRAS_MEND = $(if $(findstring realtimestt,$(EXTRAS)),$(call without_broken_torchaudio,$(VENV)),true)
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-extras lint types bench bench-pool bench-media bench-turns bench-peers-env isolation soak fuzz attack constraints constraints-extras docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

run: $(VENV)/.installed ## install what is missing and serve on http://localhost:8080
	@exec $(BIN)/voice-rtc serve $(ARGS)

test: $(VENV)/.dev browser relay promtool ## install what is missing and run every test
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup $(ARGS)

test-extras: $(EXTRAS_VENV)/.installed ## run the tests that need PyTorch, Kokoro and RealtimeSTT (2.4 GB)
	$(EXTRAS_VENV)/bin/python -m pytest -q $(EXTRAS_TESTS) $(ARGS)

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy

bench: $(VENV)/.dev ## measure a call and write the figures to docs/benchmarks.md
	$(BIN)/python -m tools.bench_call $(ARGS)

bench-pool: $(VENV)/.dev ## measure the pool of recognisers (20 minutes), figures to docs/benchmarks.md
	$(BIN)/python -m tools.bench_windows --write
	$(BIN)/python -m tools.bench_stt --key cpu shared:short:16 shared:short:32 shared:full:8 \
		shared:full:16 dedicated:full:2 dedicated:full:4 dedicated:full:8 dedicated:full:16
	$(BIN)/python -m tools.bench_stt --key tiny --random tiny shared:short:8 shared:short:16 \
		shared:full:2 shared:full:4 dedicated:full:2 dedicated:full:4
	$(BIN)/python -m tools.bench_faults --write
	$(BIN)/python -m tools.bench_pool --write

bench-media: $(VENV)/.dev ## measure the audio path (an hour), figures to docs/benchmarks.md
	$(BIN)/python -m tools.bench_media --write $(ARGS)

bench-turns: $(VENV)/.dev ## scripted callers, default against naive turn taking, figures to docs/benchmarks.md
	$(BIN)/python -m tools.turns --write $(ARGS)

# Environments of their own: what they need must not meet what we need.
PEERS := .venv-peers-pipecat .venv-peers-fastrtc
bench-peers-env: $(PEERS:=/.installed) ## install Pipecat and FastRTC for bench-media to compare with (1.9 GB)

.venv-peers-pipecat/.installed: PACKAGES := 'pipecat-ai[webrtc]==1.14.0' aiohttp==3.14.5 uvloop==0.23.0
.venv-peers-fastrtc/.installed: PACKAGES := fastrtc==0.0.34 aiohttp==3.14.5 uvloop==0.23.0
$(PEERS:=/.installed): Makefile
	@tools/make_venv "$(PYTHON)" "$(@D)"
	@echo "voice_rtc: installing $(PACKAGES) into $(@D)"
	@$(@D)/bin/python -m pip install -q --disable-pip-version-check $(PACKAGES)
	@touch $@

isolation: $(VENV)/.dev ## 2,000 turns of 20 callers, engines dying: is anybody heard as another?
	$(BIN)/python -m tools.isolation --write $(ARGS)

soak: $(VENV)/.dev ## eight bots for a minute against a server of their own
	$(BIN)/python -m tools.load $(ARGS)

fuzz: $(VENV)/.dev ## 10,000 broken offers: is one answered by an error of the server, or slowly?
	$(BIN)/python -m tools.fuzz_offers $(ARGS)

attack: $(VENV)/.dev ## a flood of offers, 100,000 strange datagrams, a huge message: is a call lost?
	$(BIN)/python -m tools.attack offers --write
	$(BIN)/python -m tools.attack datagrams --write
	$(BIN)/python -m tools.attack message --write

docs: $(VENV)/.dev ## write docs/configuration.md from the settings
	$(BIN)/voice-rtc config --format markdown > docs/configuration.md

clean: ## remove the virtual environment and all caches
	rm -rf $(VENV) $(EXTRAS_VENV) $(PEERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/pip $(EXTRAS_VENV)/bin/pip:
	@if [ -z "$(PYTHON)" ]; then \
		echo "voice_rtc needs Python 3.11 or 3.12; install it or name one: make run PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@echo "voice_rtc: making $(@D:/bin=) with $(PYTHON)"
	@tools/make_venv "$(PYTHON)" "$(@D:/bin=)"

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@$(EXTRAS_NEED)
	@echo "voice_rtc: installing Python packages into $(VENV), versions as in constraints.txt (about 600 MB)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@$(EXTRAS_MEND)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@$(EXTRAS_NEED)
	@echo "voice_rtc: installing Python packages with the development tools into $(VENV) (about 700 MB)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e '.[dev$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	@$(EXTRAS_MEND)
	@touch $@ $(VENV)/.installed

$(EXTRAS_VENV)/.installed: pyproject.toml constraints.txt constraints-extras.txt | $(EXTRAS_VENV)/bin/pip
	@$(PYAUDIO_NEEDS)
	@echo "voice_rtc: installing Python packages with the extras into $(EXTRAS_VENV) (about 2.4 GB)"
	@$(EXTRAS_VENV)/bin/python -m pip install -q --disable-pip-version-check \
		-c constraints.txt -c constraints-extras.txt -e '.[$(TESTED_EXTRAS)]'
	@$(call without_broken_torchaudio,$(EXTRAS_VENV))
	@touch $@

# Only the checker of Debian's package: installed, it would start a Prometheus server.
PROMTOOL := build/promtool/usr/bin/promtool
.PHONY: promtool
promtool: ## fetch the checker of docs/monitoring/alerts.yml, 20 MB
ifeq ($(shell command -v promtool),)
	@test -x $(PROMTOOL) || { echo "voice_rtc: fetching promtool"; mkdir -p build/promtool && cd build/promtool \
		&& { apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }; } \
		&& dpkg -x prometheus_*.deb . && rm -f prometheus_*.deb; } 2>/dev/null \
		|| echo "voice_rtc: no promtool: the tests of the alert rules will be SKIPPED" >&2
endif

.PHONY: browser
browser:
ifneq ($(strip $(BROWSER_PACKAGES)),)
	@tools/apt_install $(BROWSER_PACKAGES) \
		|| echo "voice_rtc: the browser tests will be SKIPPED: they need $(strip $(BROWSER_PACKAGES))" >&2
endif

.PHONY: relay
relay: # coturn, for the tests of relayed calls; what its package starts is stopped again
ifeq ($(shell PATH=$$PATH:/usr/sbin command -v turnserver),)
	@tools/apt_install coturn || echo "voice_rtc: the tests of relayed calls will be SKIPPED: they need coturn" >&2
	@! command -v systemctl >/dev/null || systemctl disable --now -q coturn 2>/dev/null || true
endif

constraints: $(VENV)/.dev ## pin what is installed now into constraints.txt
	@{ echo "# Every package of a development install, pinned. Made by \`make constraints\`;"; \
	   echo "# change versions by editing pyproject.toml, installing, and running that again."; \
	   $(BIN)/python -m pip freeze --exclude-editable --exclude voice-rtc; } > constraints.new
	@mv constraints.new constraints.txt

constraints-extras: $(EXTRAS_VENV)/.installed ## pin what the extras add into constraints-extras.txt
	@{ echo "# What the extras $(TESTED_EXTRAS) add to constraints.txt, pinned."; \
	   echo "# Made by \`make constraints-extras\`, after \`make constraints\`."; \
	   $(EXTRAS_VENV)/bin/python -m pip freeze --exclude-editable --exclude voice-rtc \
	     | sed -E 's/\+(cpu|cu[0-9]+)$$//' | grep -vxFf constraints.txt | grep -v '^torchaudio=='; \
	   grep '^torchaudio==' constraints-extras.txt; } > constraints.new  # it may have been taken out
	@mv constraints.new constraints-extras.txt
