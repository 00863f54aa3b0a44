# Everything a fresh clone needs. Each target sets up what it uses; only Python and a package index are assumed.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV ?= .venv
RUN_DIR ?= runs/demo
BIN = $(VENV)/bin
# Files share fits, so a file stays with one process; the order is that of tests/conftest.py, long files first.
SIDE_BY_SIDE = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK = 1
unexport PYTHONDONTWRITEBYTECODE

# The first target is what a bare `make` does.
.PHONY: help demo test test-long test-slow test-seeds test-lowest planted-faults stored-fits lint notebooks docs bench clean
help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# One stamp per set of extras; it is remade when pyproject.toml changes. Half of pip's time would go into the resolver of
# an old pip, and into byte code of what is never imported: it is written at the first import instead.
$(VENV)/.installed-%: pyproject.toml
	@test -x $(BIN)/python || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --upgrade-deps $(VENV); }
	@echo "installing hbm_jax[$*] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --no-compile --editable '.[$*]'
	@touch $@

demo: $(VENV)/.installed-plots ## fit the 740 JLA supernovae (flat wCDM) and write a report to runs/demo
	$(BIN)/hbm-jax fit supernova --data jla --cosmology wcdm --out $(RUN_DIR) --overwrite || test $$? -eq 4

# Compiled programs are kept in .test_programs for the next run; `make clean` empties it.
test: $(VENV)/.installed-test ## the default test suite; keeps compiled programs in .test_programs for the next run
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-long: $(VENV)/.installed-test ## fits whose posteriors are compared, and calibration; CI runs it too
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m long

test-seeds: $(VENV)/.installed-test ## the statistical tests with 20 other seeds, and the spread of their distances
	$(BIN)/python tests/other_seeds.py

# uv takes the oldest version of each direct dependency. Warnings are no errors here: some of the old versions use what
# their own dependencies deprecate by now.
test-lowest:     ## the default suite with the oldest versions that pyproject.toml allows, in .venv-lowest
	@test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	@.venv-lowest/bin/python -m pip install --quiet uv
	@.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[test]'
	.venv-lowest/bin/python -m pytest $(SIDE_BY_SIDE) --override-ini filterwarnings=default

planted-faults: $(VENV)/.installed-test ## plant 80 faults in the package, one at a time: do the tests notice?
	$(BIN)/python tests/planted_faults --fresh 20

stored-fits: $(VENV)/.installed-test ## sample the small fits again that tests read from tests/stored_fits
	$(BIN)/python tests/stored_fits.py

test-slow: $(VENV)/.installed-test ## whole populations and their calibration
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

notebooks: $(VENV)/.installed-test ## run the notebooks again and keep their outputs, figures in few colours
	$(BIN)/python notebooks/run.py

docs: $(VENV)/.installed-docs ## guide, notebooks and API reference in docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/.installed-bench ## five systems against NumPyro, BlackJAX, PyMC and Stan; BENCH=--quick for a short one
	$(BIN)/hbm-jax bench $(BENCH)

clean:           ## remove the virtual environment and caches, keep runs/
	rm -rf $(VENV) .venv-lowest .test_programs .planted_faults .pytest_cache .ruff_cache .mypy_cache
