PROFILE ?= quick
JOBS    ?= $(shell getconf _NPROCESSORS_ONLN)
PYTHON  ?= python3
ON      ?= default
BIN     := .venv/bin
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help env book run site chapter new paper test test-cluster lint serve pdf reference bench clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## */  make \1	/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "  knobs: PROFILE=quick|paper  JOBS=$(JOBS)  CH=chapter  PYTHON=$(PYTHON)  ON=default|slurm"

env: .venv/.complete  ## the environment, .venv
.venv/.complete: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, $(PYTHON) is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

book: run site   ## everything: environment, every chapter that changed, the site, its checks
run: env $(if $(filter slurm,$(ON)),build/cluster/.complete)
	@$(BIN)/python tools/execute.py --profile $(PROFILE) --jobs $(JOBS) --on $(ON)
site: run
	@$(BIN)/python tools/build_site.py --profile $(PROFILE)

chapter: env     ## one chapter and the site: make chapter CH=edge-of-stability
	@test -n "$(CH)" || { echo "Which chapter? make chapter CH=edge-of-stability"; exit 2; }
	@$(BIN)/python tools/execute.py --profile $(PROFILE) --jobs $(JOBS) $(CH)
	@$(BIN)/python tools/build_site.py --profile $(PROFILE)

new: env         ## a new chapter from the template: make new CH=intrinsic-dimension
	@$(BIN)/python tools/new_chapter.py $(CH)

paper: env $(if $(filter slurm,$(ON)),build/cluster/.complete)  ## paper-size results of CH, or of every chapter (needs a GPU), into results/paper
	@$(BIN)/python tools/paper.py --on $(ON) $(CH)

# What a hosted notebook service offers, as far as the chapters use it; without the book's library and tools.
COLAB = torch numpy scipy matplotlib plotly scikit-learn scikit-image ipykernel
build/colab/.complete: requirements.txt Makefile
	rm -rf build/colab
	$(PYTHON) -m venv build/colab
	build/colab/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.txt $(COLAB)
	touch $@

test: book build/colab/.complete  ## everything that guards the project
	@$(BIN)/ruff check .
	@$(BIN)/python tools/reference.py --stage
	@$(BIN)/python -m pytest -n $(JOBS) -q

# A real Slurm of one node on this machine (Debian, root): CHAPTERS="slug slug", all of them by default.
build/cluster/.complete: requirements-cluster.txt .venv/.complete
	rm -rf build/cluster
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/cluster -r requirements-cluster.txt
	touch $@

test-cluster: book build/cluster/.complete  ## the chapters through Slurm, one job killed, compared with the local run
	@tests/cluster/slurm.sh start
	@$(BIN)/python -m pytest -q -s tests/cluster; status=$$?; tests/cluster/slurm.sh stop; exit $$status

lint: env
	@$(BIN)/ruff check .

serve: book      ## the site at http://127.0.0.1:8000
	@$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _build/html

pdf: book        ## the whole book as one PDF (needs Chromium or Chrome)
	@$(BIN)/python tools/make_pdf.py

reference: run   ## renew what the tests compare with: make reference CH=edge-of-stability
	@$(BIN)/python tools/reference.py $(CH)
	@git --no-pager diff --stat -- tests/reference

bench: env       ## speed and memory, as ratios side by side (installs JAX into an environment of its own)
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	@PYTHONPATH=lib .venv-bench/bin/python benchmarks/run.py

clean:           ## remove everything that was built, keep the environment
	rm -rf build _build .snakemake .pytest_cache .ruff_cache
