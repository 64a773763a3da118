# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN    := .venv/bin
QUICK  ?=
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-slow check clean

# torch first and by its exact version: a wider request would take a build with gigabytes of CUDA.
.venv/ready: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[llm,lora,deepspeed,data,plot,dev]"
	touch $@

setup: .venv/ready

demo: setup
	$(BIN)/crl llm compare $(if $(QUICK),--quick)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# The slow tests, and the loggers with the trackers that the default setup does not install.
test-slow: setup
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[tensorboard,wandb,trackio]"
	$(BIN)/python -m pytest tests/constrained_rl/test_loggers.py
	$(BIN)/python -m pytest -n 2 -m slow

check: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
