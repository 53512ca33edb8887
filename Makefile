# Every target makes what it needs from nothing: its own environment, its own install.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
HOST ?= 127.0.0.1
PORT ?= 3000
FILES_PORT ?= 3001

export FLEXY_HOME ?= $(CURDIR)/.flexy
export DAGSTER_HOME ?= $(CURDIR)
export FLEXY_DAGSTER_STORAGE ?= $(FLEXY_HOME)/dagster
export FLEXY_FILES_URL ?= http://$(HOST):$(FILES_PORT)

# uv does not read pip's variable for a wheelhouse (a folder with a CPU build of torch, say).
comma := ,
empty :=
space := $(empty) $(empty)
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
endif

.PHONY: demo test check ui up apart lint lock references label-studio docs docs-serve reference clean

demo: $(VENV)/.installed
	$(BIN)/flexy demo

# The file server does not get the Ctrl-C, so the shell ends it. Dagster would print two lines a tick, and that `dg dev`,
# of a package that nothing else here needs, has superseded this command.
ui up: $(VENV)/.installed
	@mkdir -p $(FLEXY_DAGSTER_STORAGE) $(FLEXY_HOME)/assets
	@echo "in a few seconds: Dagster http://$(HOST):$(PORT)   report, CSV and tables http://$(HOST):$(FILES_PORT)"
	@$(BIN)/python -m resources.http.file_server $(FLEXY_HOME)/assets --host $(HOST) --port $(FILES_PORT) & \
		files=$$!; trap "kill $$files" EXIT; trap : INT; \
		PYTHONWARNINGS='ignore:Function ' \
		$(BIN)/dagster dev --workspace workspace.yaml --host $(HOST) --port $(PORT) --log-level warning

# `up` is `ui` with Dagster's bookkeeping in Postgres: see docs/operations.md.
up: export DAGSTER_HOME := $(CURDIR)/deploy/postgres
up: apart

apart: $(VENV)/.installed
	@$(BIN)/python deploy/postgres/check.py

# Lint, and what is tested in seconds: without servers, a browser or images made by models.
check: lint
	$(BIN)/pytest -m "not slow and not browser and not postgres and not label_studio"

test: $(VENV)/.installed $(VENV)/references/.installed $(VENV)/label-studio/.installed $(VENV)/docs/.installed
	$(BIN)/pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v npx >/dev/null; then \
		npx --yes --package typescript@7.0.2 tsc --project flexy_assets/reporting/static && \
		npx --yes oxlint@1.94.0 --deny-warnings flexy_assets/reporting/static; \
	else echo "the pages' JavaScript is not checked: install Node.js"; fi

$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(UV) || $(BIN)/python -m pip install --quiet uv==0.13.9
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

references: $(VENV)/references/.installed

# What scores are held against: apart from the environment, because their pins cannot all be kept.
$(VENV)/references/.installed: tests/support/references.txt $(VENV)/.installed
	$(UV) pip install --quiet --no-deps --python $(BIN)/python --target $(VENV)/references \
		--requirement tests/support/references.txt
	touch $@

label-studio: $(VENV)/label-studio/.installed

# The server that its client is tested with. Its hundreds of migrations take a minute: they are run once, here.
$(VENV)/label-studio/.installed: tests/support/label_studio.txt tests/support/label_studio.py $(VENV)/.installed
	$(UV) venv --quiet --allow-existing --python $(BIN)/python $(VENV)/label-studio
	$(UV) pip install --quiet --python $(VENV)/label-studio/bin/python --requirement tests/support/label_studio.txt
	$(BIN)/python tests/support/label_studio.py
	touch $@

# A warning (a broken link, a page that is in no menu) fails the build. The reference is written from the code.
docs: reference
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --quiet --strict

docs-serve: reference
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs serve --dev-addr $(HOST):8000

reference: $(VENV)/.installed $(VENV)/docs/.installed
	$(BIN)/python -m docs.reference

$(VENV)/docs/.installed: docs/requirements.txt $(VENV)/.installed
	$(UV) venv --quiet --allow-existing --python $(BIN)/python $(VENV)/docs
	$(UV) pip install --quiet --python $(VENV)/docs/bin/python --requirement docs/requirements.txt
	touch $@

# The exact versions. torch's local suffix and its CUDA packages are dropped: each machine takes its own build.
lock: $(VENV)/.installed
	$(UV) pip compile --quiet --upgrade --python $(BIN)/python pyproject.toml --group dev --group notebooks \
		--no-header --no-annotate --output-file requirements.lock
	echo mkdocs-material | $(UV) pip compile --quiet --upgrade --python $(BIN)/python - \
		--no-header --no-annotate --output-file docs/requirements.txt
	sed -i -E -e 's/\+cpu$$//' -e '/^(cuda-|nvidia-|triton=)/d' requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
