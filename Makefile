# `make repro` runs everything, `make test` checks everything. Both make .venv first when it is missing or stale.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := true

.PHONY: repro test lint lab data bench record clean lock

repro: $(READY)  ## run the pipeline: what has not changed is taken from the cache
	dvc repro

test: $(READY)  ## the whole test suite
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## code and notebooks: style, and no outputs in the source notebooks
	ruff check . && ruff format --check . && nbstripout --verify notebooks/*.ipynb

lab: $(READY)  ## JupyterLab on this machine alone, with the kernel of .venv
	jupyter lab --ip=127.0.0.1 notebooks

data: $(READY)  ## what of SOURCE=deepfashion (fashionai, darn) is there, what is missing, and where it is had
	python -m m3lib.pipeline.check_inputs $(SOURCE)

bench: $(READY)  ## measure: seconds and memory of every stage of the last run; WHAT=data|ranking|search|train|load
	python -m tests.bench.$(or $(WHAT),stages)

record: $(READY)  ## gather experiments NAME-... into data/results/NAME.csv, and write README's tables from it
	python -m m3lib.analysis.record $(NAME)

clean:  ## remove what the pipeline made, not its cache: `make repro` brings it back
	rm -rf notebooks/executed data/notebooks data/prepared data/models data/embeddings data/attention data/figures data/index data/work dvc_plots

lock:  ## pin the newest versions that fit pyproject.toml
	$(BIN)/uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --quiet --extra dev pyproject.toml --output-file requirements.lock

# A stamp, written last, so that an interrupted install starts over. uv lives inside .venv: nothing else is assumed.
$(READY): requirements.lock
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/python -c "import site, pathlib; pathlib.Path(site.getsitepackages()[0], 'm3.pth').write_text('$(CURDIR)\n')"
	touch $@
