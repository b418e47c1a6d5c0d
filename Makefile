# make run [PROMPT="..."] [ARGS="..."]   set up once, then run the embedded model
# make test [ARGS="..."]                 set up once, then run the tests; EVERY_TYPE=1: with all kernels
#                                        of all quant types and the long tests, as .ci/run does
# make gpu-kernels [ARGS="..."]          what every GPU kernel costs, without a GPU; fails if one spills
# make results [RUNS="TQ1_0-packed"]     measure this machine beside llama.cpp, write PAGE
# make gpu-check [OUT=folder]            prove a GPU against the CPU, and measure it
# make clients                           the server against clients from npm, which it installs
# make agents                            the server under opencode, Claude Code and Codex, likewise
# make stress [ARGS="..."]               the server under thousands of requests, half of them left
# make schemathesis [ARGS="..."]         the server against what its /openapi.json says
# make page-test [ARGS="..."]            the page in Chromium; CHROMIUM=/path/to/it if not on the PATH
# make vendor                            fetch the page's libraries from npm again, as they are pinned
# make clean                             remove what these made
#
# PYTHON selects the interpreter (3.11 or newer), VENV the place of the environment.

PYTHON ?= python3
VENV ?= .venv
SAMPLE_QUESTION = What is a routed expert?

export PYTHONNOUSERSITE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN = $(VENV)/bin

# routed experts of a Kimi K2.5 layer: TYPE-LAYOUT
RUNS ?= $(foreach t,TQ1_0 IQ1_S IQ1_M Q2_K Q3_K TQ2_0,$(t)-packed $(t)-native) \
  $(foreach t,IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_XS Q4_0 Q4_K Q8_0,$(t)-native)
PAGE ?= bench/results/this-machine.md
BENCH = $(BIN)/kimi-offload bench --compare llama.cpp $(ARGS)

.PHONY: stress schemathesis run test gpu-kernels results gpu-check clients agents page-test vendor venv venv-dev clean

# only from the command line: some shells keep something else in a variable PROMPT
ifeq ($(origin PROMPT),command line)
run: export QUESTION = $(value PROMPT)
endif

# A prompt, or no terminal to chat on: one answer. Otherwise a chat.
run: venv
	@if [ -n "$$QUESTION" ]; then \
	  exec $(BIN)/kimi-offload run --prompt "$$QUESTION" $(ARGS); \
	elif [ -t 0 ]; then \
	  exec $(BIN)/kimi-offload run $(ARGS); \
	else \
	  echo "question: $(SAMPLE_QUESTION)" >&2; \
	  exec $(BIN)/kimi-offload run --prompt "$(SAMPLE_QUESTION)" $(ARGS) </dev/null; \
	fi

test: venv-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
	  $(ARGS)

gpu-kernels: venv-dev
	$(BIN)/python -m quant.cuda.report $(ARGS)

results: venv
	@mkdir -p build/results
	$(BENCH) --seconds 6 --json build/results/kimi-mini.json
	@set -e; for run in $(RUNS); do \
	  $(BENCH) --shape kimi-k2.5 --experts "$${run%-*}" --experts-layout "$${run##*-}" \
	    --seconds 3 --json "build/results/$$run.json"; \
	done
	$(BIN)/python -m offload.bench.results \
	  build/results/kimi-mini.json $(RUNS:%=build/results/%.json) >build/results/page.md
	cp build/results/page.md $(PAGE)

# needs numpy, numba and numba-cuda, and installs nothing: CHECK_PYTHON has them
OUT ?= build/gpu-check
CHECK_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

gpu-check:
	$(CHECK_PYTHON) -m offload.gpu_check --out $(OUT) $(ARGS)

stress: venv-dev
	$(BIN)/python tests/stress_server.py $(ARGS)

# installs into a folder of its own
schemathesis: venv-dev
	$(BIN)/python tests/described_server.py $(ARGS)

# needs node 20 or newer
clients: venv-dev
	@mkdir -p build/clients
	cp tests/clients/package.json tests/clients/package-lock.json build/clients
	cd build/clients && npm ci --no-audit --no-fund
	$(BIN)/python -m pytest tests/test_npm_clients.py $(ARGS)

# needs node 20 or newer; about 900 MB
agents: venv-dev
	@mkdir -p build/agents
	cp tests/agents/package.json build/agents
	cd build/agents && npm install --no-audit --no-fund --ignore-scripts && \
	  node node_modules/opencode-ai/postinstall.mjs && \
	  node node_modules/@anthropic-ai/claude-code/install.cjs
	$(BIN)/python -m pytest tests/test_agents.py $(ARGS)

# needs a Chromium of the system (Debian: apt-get install chromium)
page-test: venv-dev
	$(BIN)/python -m pip install --quiet playwright axe-playwright-python
	PAGE_TEST=1 $(BIN)/python -m pytest tests/test_page.py tests/test_page_browser.py \
	  tests/test_page_trouble.py tests/test_page_panel.py tests/test_page_care.py tests/test_page_looks.py $(ARGS)

vendor:
	$(PYTHON) .ci/vendor_page

venv: $(VENV)/.installed

venv-dev: $(VENV)/.installed-dev

$(VENV)/.installed: setup.cfg pyproject.toml .ci/llama_cpp_lean.cmake .ci/make_venv
	@bash .ci/make_venv "$(PYTHON)" "$(VENV)" .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@bash .ci/make_venv "$(PYTHON)" "$(VENV)" ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
