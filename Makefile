# `make demo` and `make test` set up what they need. On a machine with a GPU: `make setup EXTRA=gpu`.
EXTRA ?= cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(EXTRA)

.PHONY: setup demo test test-long lint docs lock

setup: $(INSTALLED)

# The lock is complete and is installed without dependency resolution: resolution would add torchvision, torchaudio and
# torchcodec, whose ordinary builds break `import transformers` beside torch's CPU build. That CPU build comes from
# pip's configured sources where they have it, else from PyTorch's own index.
$(INSTALLED): locks/$(EXTRA).txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$$(grep '^uv==' $<)"
ifeq ($(EXTRA),cpu)
	$(BIN)/python -m pip install -q --no-deps torch==2.13.0+cpu 2>/dev/null || \
	  $(BIN)/python -m pip install -q --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
endif
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --compile-bytecode -r $< || \
	  $(BIN)/python -m pip install -q --no-deps -r $<
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/rlaif demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long and not gpu and not alone"
	$(BIN)/python -m pytest -m alone

test-long: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "long and not gpu"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m scripts.config_reference
	$(BIN)/python -m scripts.dashboards

# Complete locks for both kinds of machine, from pyproject.toml. PyPI's torch stands for the CPU build, which it lacks.
lock: setup
	for extra in cpu gpu; do \
	  resolved="$$(echo torch==2.13.0 | $(BIN)/uv pip compile -q --no-annotate --no-header --override - \
	    --extra $$extra --extra dev --python-version 3.11 --python-platform x86_64-manylinux_2_35 pyproject.toml)" || exit; \
	  echo "$$resolved" | LC_ALL=C sort | \
	    grep -vE "^(torchvision|torchaudio|torchcodec)==$$(test $$extra = gpu || echo '|^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==')" \
	    > locks/$$extra.txt; \
	done
