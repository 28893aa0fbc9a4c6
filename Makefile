# `make demo` and `make test` set up what they need. On a machine with a GPU: `make setup EXTRA=gpu`.
EXTRA ?= cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.$(EXTRA)-installed

.PHONY: setup demo test test-long lint docs lock

setup: $(STAMP)

# The lock is complete and is installed without dependency resolution: resolution would add torchvision, torchaudio and
# torchcodec, whose ordinary builds break `import transformers` beside torch's CPU build. That CPU build comes from
# pip's configured sources where they have it, else from PyTorch's own index.
$(STAMP): locks/$(EXTRA).txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv==0.11.7
	$(if $(filter cpu,$(EXTRA)),$(BIN)/python -m pip install -q --no-deps torch==2.13.0+cpu 2>/dev/null || \
	  $(BIN)/python -m pip install -q --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu)
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -r $< || $(BIN)/python -m pip install -q --no-deps -r $<
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@
