# Every command sets up .venv by itself (Python 3.11, about 6 GB, a few minutes, once). VENV=folder uses an existing
# environment instead and installs nothing.
.DEFAULT_GOAL := help
.PHONY: help report prefetch test test-browser chromium test-slurm lab clean
SHELL := /bin/sh

VENV ?=
TEST_PROCESSES ?= 2
PYTHON := $(if $(VENV),$(VENV),.venv)/bin/python
READY := $(if $(VENV),,.venv/.ready)

# This clone's lib, also when several clones share one environment. What the commands take is handed over through the
# environment, so that no value is ever read as shell code.
export PYTHONPATH := $(CURDIR)
export FAMILY PROFILE DATASET DATA_ROOT RUN SET JOBS CLUSTER SNAKEMAKE CHROMIUM

help: ## say what there is (this)
	@echo "make report  run the notebooks and write reports/<run>/index.html"
	@echo "             FAMILY=retrieval (or all) PROFILE=tiny DATASET=esc50 DATA_ROOT=folder RUN=name SET=\"seed=1 num_samples=200\" JOBS=cores"
	@echo "             CLUSTER=slurm runs them as Slurm jobs; CLUSTER=folder as a copy of notebooks/profiles/slurm says (JOBS=jobs at a time)"
	@echo "make prefetch  get the weights and data sets that make report with the same choices needs, where nodes have no network"
	@echo "make test    run the test suite (TESTS=\"tests/workbook -k runner\" for a part of it)"
	@echo "make test-browser  drive notebook 12 and the Poincaré disk with a real browser (needs Debian's package chromium)"
	@echo "make test-slurm  all families through a Slurm of this machine's own (needs Debian's packages slurm-wlm and munge)"
	@echo "make lab     open the notebooks in JupyterLab"
	@echo "make clean   delete the reports and caches of this folder (data/, runs/ and .venv/ stay)"
	@echo "All of them take VENV=folder, an existing environment; otherwise .venv is made when needed."

report: $(READY) ## run the notebooks and build the report
	@echo "make report: running the notebooks that are not up to date, then building the index"
	@"$(PYTHON)" -m lib.workbook.report --family="$$FAMILY" --profile="$$PROFILE" --dataset="$$DATASET" \
		--data-root="$$DATA_ROOT" --set="$$SET" --run="$$RUN" --jobs="$$JOBS" --cluster="$$CLUSTER" --snakemake="$$SNAKEMAKE"

prefetch: $(READY) ## get weights and data sets beforehand
	@echo "make prefetch: looking for the weights and data sets of these jobs, getting those that are missing"
	@"$(PYTHON)" -m lib.workbook.prefetch --family="$$FAMILY" --profile="$$PROFILE" --dataset="$$DATASET" --data-root="$$DATA_ROOT" --set="$$SET"

test: $(READY) ## run the test suite
	@echo "make test: running the test suite in $(TEST_PROCESSES) processes, 10 to 15 minutes on 2 cores"
	@"$(PYTHON)" -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(TESTS)

test-browser: chromium $(READY) ## drive JupyterLab in a real browser
	@echo "make test-browser: notebook 12 and the Poincaré disk in Chromium, about 1 minute; pictures go to build/browser"
	@WORKBOOK_BROWSER=1 "$(PYTHON)" -m pytest tests/browser

chromium: # asked for first, so that nothing is installed in vain
	@command -v "$${CHROMIUM:-chromium}" >/dev/null || { echo "error: the system package chromium is missing. As root:" \
		"apt-get install chromium (Debian); or name another Chromium: make test-browser CHROMIUM=/path/of/it" >&2; exit 2; }

test-slurm: $(READY) ## run all families through a real Slurm
	@for program in munged slurmctld slurmd sbatch; do PATH="$$PATH:/usr/sbin" command -v "$$program" >/dev/null || { \
		echo "error: $$program is missing. As root: apt-get install slurm-wlm munge (Debian)" >&2; exit 2; }; done
	@echo "make test-slurm: all families on profile tiny through a Slurm started for it, about 7 minutes on 2 cores"
	@WORKBOOK_SLURM=1 "$(PYTHON)" -m pytest tests/slurm

# One message of a widget may be as large as a recording that is uploaded to search with: 256 MB instead of 10.
lab: $(READY) ## open JupyterLab
	@echo "make lab: opening the notebooks in JupyterLab; end it with Ctrl-C"
	@"$(PYTHON)" -m jupyterlab --notebook-dir="$(CURDIR)" --ServerApp.tornado_settings='{"websocket_max_message_size": 268435456}' \
		$(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_start_here.ipynb

clean: ## delete what was generated, except data, runs and the environment
	@echo "make clean: deleting reports/* and caches; data/, runs/ and .venv/ stay"
	@find reports -mindepth 1 -maxdepth 1 ! -name README.md ! -name pictures -exec rm -rf {} +
	@rm -rf .pytest_cache .hypothesis build *.egg-info
	@find lib tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Removed first, so that an installation broken off is begun anew; --no-deps because the lock is complete; the .pth file makes
# `import lib` work for whoever starts papermill or JupyterLab from .venv by hand.
.venv/.ready: requirements.txt
	@python=""; for candidate in python3.11 python3 python; do \
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "error: Python 3.11 is needed and was not found; install it, or give an environment with VENV=folder" >&2; exit 2; fi; \
	echo "setting up .venv: about 220 packages, 6 GB on disk, 3 to 8 minutes, once"; \
	rm -f .venv/.ready && "$$python" -m venv .venv && \
	.venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-input --no-deps -r requirements.txt && \
	.venv/bin/python -m pip check --disable-pip-version-check && \
	.venv/bin/python -c "import os, pathlib, site; pathlib.Path(site.getsitepackages()[0], 'workbook.pth').write_text(os.environ['PYTHONPATH'])" && \
	touch .venv/.ready
