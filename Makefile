# Everything you do with a checkout is one `make` away; `make` alone lists it.
# The first call of a target puts what it needs into .venv. Later calls need no network until pyproject.toml changes.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
comma := ,

# What runs here sees the packages and kernels of $(VENV) and no others.
unexport JUPYTER_PATH MPLBACKEND PYTHONHOME PYTHONPATH
export JUPYTER_PREFER_ENV_PATH := 1

# Two installs at once into one environment would spoil it: `make -j` runs one target after the other.
.NOTPARALLEL:
.PHONY: help demo lab test lint bench notebooks readme clean

help:  ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo  ## train a dense net, small dense nets and HashedNets on MNIST; print a table, draw a figure
	MPLBACKEND=Agg $(VENV)/bin/hashedmm experiment demo

lab: $(VENV)/.lab  ## open the walkthrough in JupyterLab
	$(PY) -m jupyterlab notebooks/00_start_here.ipynb

# In the order of the files: those of tests first, which have the longest one, and the notebooks fill what is left.
test: lint  ## run every check: ruff, mypy, the gates, the tests, all notebooks, all notebooks in a browser
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	    --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval.cfg tests $(wildcard notebooks)

lint: $(VENV)/.test  ## run ruff, mypy and the gates of the notebooks alone
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m hashedmm.notebooks

bench: $(VENV)/.demo  ## measure the CPU kernels against NumPy's dense product
	$(VENV)/bin/hashedmm bench --cpu

notebooks: $(VENV)/.lab  ## execute every notebook in place; minutes measured beside minutes stated
	rm -f data/results/traces.json
	HASHEDMM_RECORD_TRACES=$(CURDIR)/data/results/traces.json $(PY) -m hashedmm.notebooks --fix --execute

readme: $(VENV)/.demo  ## write the README's tables again from data/results
	$(VENV)/bin/hashedmm report --write README.md

clean:  ## delete .venv and all caches; data and results stay
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# Installing. A stamp file says that an install succeeded; pyproject.toml being newer makes it happen again.
$(VENV)/.demo: extras := plot
$(VENV)/.lab: extras := lab
$(VENV)/.test: extras := lab,test,nvrtc,mpich
# The emulator needs a C++ compiler: where the machine has none, one comes as a wheel.
$(VENV)/.lab $(VENV)/.test: compiler := $(if $(shell command -v c++ || command -v g++ || command -v clang++),,$(comma)emulator)

$(VENV)/.demo $(VENV)/.lab $(VENV)/.test: $(PY) pyproject.toml
	@echo "Installing hashedmm[$(extras)$(compiler)] into $(VENV): minutes the first time, seconds later."
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[$(extras)$(compiler)]"
	@touch $@

# A virtual environment holds absolute paths, so it is made anew when the folder was moved, or when making it was cut short.
ifneq ($(shell cat $(VENV)/.folder 2>/dev/null),$(CURDIR))
.PHONY: $(PY)
endif

$(PY):
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	    echo "No program named '$(PYTHON)' was found. Install Python 3.11 or newer, or name yours: make TARGET PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "hashedmm needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Name a newer one: make TARGET PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "'$(PYTHON)' cannot make virtual environments: its venv or ensurepip module is missing. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) with $$("$(PYTHON)" -V 2>&1)."
	@"$(PYTHON)" -m venv --clear $(VENV)
	@printf '%s\n' "$(CURDIR)" > $(VENV)/.folder
