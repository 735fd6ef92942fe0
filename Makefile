# The project's commands; `make help` lists them. Everything is installed into .venv, nothing outside this folder is written.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Parallel test processes, and further arguments for the command behind a target: make test ARGS='tests/numerics -x'
JOBS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
# One after another, as they would install into one environment at once; but for what asks to be run side by side.
ifndef SIDE_BY_SIDE
.NOTPARALLEL:
endif
.PHONY: help demo test accuracy bench lint format types tutorials docs clean FORCE

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.installed-all ## install into .venv if need be, then run `cfiv demo`
	$(BIN)/cfiv demo $(ARGS)

test: $(VENV)/.installed-test ## install into .venv if need be, then run the tests but for the slow ones: some minutes
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow" --durations 10 $(ARGS)

accuracy: $(VENV)/.installed-test ## run the slow tests: errors over seeds, levels and coverage, kills
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m slow --durations 10 $(ARGS)

bench: $(VENV)/.installed-test ## run tests/benchmarks, one after another (best on an idle machine)
	mkdir -p build
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/pytest tests/benchmarks --benchmark-enable \
	  --benchmark-json=build/benchmarks.json $(ARGS)

lint: $(VENV)/.installed-test ## ruff: format and rules, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.installed-test ## ruff: format, and mend what can be mended
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# In build/wheel the source tree cannot be imported: what is checked is what the wheel holds. (setuptools keeps files of
# earlier builds in build/lib and would pack them again.)
WHEEL := build/wheel
types: $(VENV)/.installed-test ## mypy --strict on the built wheel
	rm -rf build/lib build/bdist.* $(WHEEL)
	mkdir -p $(WHEEL)
	$(BIN)/python -m build --wheel --no-isolation --outdir $(WHEEL) . >$(WHEEL)/build.log 2>&1 || { cat $(WHEEL)/build.log; exit 1; }
	$(BIN)/python -m pip install $(QUIET) --no-deps --target $(WHEEL)/site $(WHEEL)/*.whl
	test -f $(WHEEL)/site/cfiv/py.typed
	cd $(WHEEL) && PYTHONPATH=site ../../$(BIN)/python -c "import cfiv, cfiv.datasets as d; \
	  assert d.__file__.endswith('wheel/site/cfiv/datasets/__init__.py'), d.__file__; [getattr(cfiv, name) for name in cfiv.__all__]"
	cd $(WHEEL) && MYPYPATH=site ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy_cache -p cfiv

# Each tutorial becomes a notebook and is run in build/tutorials, where its files land too: again only after a change of the
# tutorial, of cfiv or of its data sets. One that fails leaves no notebook, and the next `make` runs it again.
# One thread each, as many run side by side as there are cores; large ones first.
SOURCES := $(shell find cfiv datasets -name '*.py' -o -name '*.toml')
NOTEBOOKS := $(patsubst tutorials/%.py,build/tutorials/%.ipynb,$(shell ls -S tutorials/*.py))
tutorials: $(VENV)/.installed-test $(if $(SIDE_BY_SIDE),$(NOTEBOOKS)) ## run the tutorials that changed as notebooks, into build/tutorials
ifndef SIDE_BY_SIDE
	@+$(MAKE) --no-print-directory --jobs $(JOBS) SIDE_BY_SIDE=1 $(NOTEBOOKS)
endif

build/tutorials/%.ipynb: tutorials/%.py $(SOURCES) | $(VENV)/.installed-test
	@mkdir -p $(@D)
	@echo "$< -> $@"
	@rm -f $@
	@$(BIN)/jupytext --quiet --to ipynb --output $(@D)/running-$(@F) $<
	@OMP_NUM_THREADS=1 IPYTHONDIR=$(abspath build/ipython) $(BIN)/jupyter execute --inplace --kernel_name=python3 --NbClientApp.log_level=30 \
	  $(@D)/running-$(@F)
	@mv $(@D)/running-$(@F) $@

# The Python blocks of the pages and of README are run too, after a change of any page or of cfiv. Sphinx executes nothing.
# It reads all pages anew (-E): from what it kept, it would not see that docstrings have changed.
PAGES := README.md $(wildcard docs/*.md docs/*/*.md)
docs: build/docs/examples tutorials ## build the documentation into build/docs/html; a warning is an error
	rm -rf docs/tutorials
	mkdir -p docs/tutorials
	cp -p $(NOTEBOOKS) docs/tutorials
	$(BIN)/sphinx-build -E -W --keep-going -q -d build/docs/doctrees docs build/docs/html
	@echo "Written: build/docs/html/index.html"

build/docs/examples: docs/extensions/run_blocks.py $(PAGES) $(SOURCES) | $(VENV)/.installed-test
	@mkdir -p $(@D)
	OMP_NUM_THREADS=1 $(BIN)/python docs/extensions/run_blocks.py --jobs $(if $(SIDE_BY_SIDE),1,$(JOBS)) $(PAGES)
	@touch $@

clean: ## remove what was built, keep .venv
	rm -rf build dist cfiv.egg-info docs/tutorials .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name .venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

# ---- set-up -----------------------------------------------------------------------------------------------------------
QUIET := --quiet --disable-pip-version-check
INSTALL := $(BIN)/python -m pip install $(QUIET) --no-compile --constraint constraints.txt
# On all cores, where pip would take one, and without the tests of packages. Some files are for other versions of Python.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true

# Current means: newer than pyproject.toml and constraints.txt. The test extras hold the others.
$(VENV)/.installed-all: $(VENV)/.place pyproject.toml constraints.txt
	@echo "Installing cfiv and what it needs into $(VENV): a few minutes the first time, about 2 GB."
	$(INSTALL) --editable ".[all]"
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.place pyproject.toml constraints.txt
	@echo "Installing cfiv and what its tests need into $(VENV): a few minutes the first time, about 2 GB."
	$(INSTALL) --editable ".[all,test]"
	@$(COMPILE)
	@touch $(VENV)/.installed-all $@

# An environment is tied to its folder and to its interpreter: made anew if either has gone, taken as it is if it was made by hand.
PLACE_IS_WRONG := $(shell test -x $(BIN)/python && test "$$(cat $(VENV)/.place 2>/dev/null)" = "$$(pwd -P)" || echo FORCE)
$(VENV)/.place: $(PLACE_IS_WRONG)
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "PYTHON=$(PYTHON) was not found. Name a Python >= 3.11: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cfiv needs Python >= 3.11, but $(PYTHON) is $$("$(PYTHON)" --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@test ! -e $@ && $(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@pwd -P >$@
