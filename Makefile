# make run [PROMPT="..."] [ARGS="..."]   set up once, then run the embedded model
# make test [ARGS="..."]                 set up once, then run the tests
# make clean                             remove what these made
#
# PYTHON selects the interpreter (3.11 or newer), VENV the place of the environment.

PYTHON ?= python3
VENV ?= .venv
SAMPLE_QUESTION = What is a routed expert?

export PYTHONNOUSERSITE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN = $(VENV)/bin

.PHONY: run test venv venv-dev clean

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
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

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
