# `make repro` runs everything, `make test` checks everything. Both create .venv first if it is missing or outdated.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := true
unexport PYTHONPATH PYTHONHOME

.PHONY: repro test lint lab data bench record clean lock git

repro: $(READY)  ## run the pipeline; unchanged stages come from the cache
	dvc repro

test: $(READY)  ## run the test suite; SHUFFLE=7 runs it in a random order, SLOW=1 with the tests that take minutes
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(if $(SHUFFLE),--shuffle $(SHUFFLE)) $(if $(SLOW),-m "")

lint: $(READY)  ## check style, and that source notebooks have no outputs
	ruff check . && ruff format --check . && nbstripout --verify notebooks/*.ipynb

lab: $(READY)  ## open JupyterLab (on this machine only) with the kernel of .venv
	jupyter lab --ip=127.0.0.1 notebooks

data: $(READY)  ## list which files of SOURCE=deepfashion (fashionai, darn) exist, and where to get the missing ones
	python -m m3lib.pipeline.check_inputs "$(SOURCE)"

bench: $(READY)  ## seconds and memory of the last run's stages; WHAT=data|ranking|search|engines|start|train|gpu|load measures those; tune, record and ideas say how they are called
	python -m tests.bench.$(or $(WHAT),stages)

record: $(READY)  ## collect experiments NAME-... into data/results/NAME.csv and update README's tables
	python -m m3lib.analysis.record $(NAME)

clean:  ## remove what the pipeline made, but not its cache: `make repro` restores it
	rm -rf notebooks/executed data/notebooks data/imagenet data/prepared data/models data/embeddings data/untrained data/attention data/figures data/index data/work dvc_plots

lock:  ## pin the newest versions that satisfy pyproject.toml
	$(BIN)/uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --quiet --extra dev pyproject.toml --output-file requirements.lock

# DVC and the tests need a repository: said before anything is installed.
git:
	@reason=$$(git rev-parse --git-dir 2>&1 >/dev/null) || { echo "error: no git repository ($$reason);" \
	  "get the code with \`git clone\` instead of a ZIP download, or run \`git init\` in this folder" >&2; exit 1; }

# The stamp is written last, so an interrupted install starts over. uv is installed into .venv; Python and git are required.
$(READY): requirements.lock | git
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/python -c "import os, pathlib, site; pathlib.Path(site.getsitepackages()[0], 'm3.pth').write_text(os.getcwd() + '\n')"
	touch $@
