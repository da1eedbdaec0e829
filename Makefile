# The two commands: `make book` and `make test`. Each works as the first one in a fresh
# clone, given Python, make and a package index; `make help` lists the rest.
PYTHON ?= python3
PROFILE ?= quick
BIN := .venv/bin
# Makes .venv if it is missing or broken.
READY := sh tools/venv.sh "$(PYTHON)"

# Kernels and caches want a HOME; where there is none that can be written, it is here. Snakemake
# wants a user's name, which a container's user may not have.
ifneq ($(shell test -d "$$HOME" && test -w "$$HOME" && echo yes),yes)
export HOME := $(CURDIR)/_build/home
$(shell mkdir -p "$$PWD/_build/home")
endif
ifndef LOGNAME
export LOGNAME := $(or $(shell id -un 2>/dev/null),$(shell id -u))
endif

.PHONY: book test paper verify confirm pdf lint bench zoo slurm lock clean help

book: ## the quick runs and the book, at _build/html/index.html (PROFILE=smoke: faster)
	@$(READY) 3.11 # for Snakemake 9
	@$(BIN)/python tools/build.py --config profile=$(PROFILE) --quiet rules
	@echo "The book: $(CURDIR)/_build/html/index.html"

test: ## the tests
	@$(READY) 3.10
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

pdf: ## the whole book as one file, _build/book.pdf (after `make book`; needs Chromium)
	@$(READY) 3.10
	@$(BIN)/python tools/pdf.py

paper: ## the full-scale records, results/paper (needs the full data)
	@$(READY) 3.11
	@$(BIN)/python tools/build.py records --config profile=paper --quiet rules

verify: ## the committed records: whole, current, the same again (SAMPLE=n BUDGET=seconds)
	@$(READY) 3.10
	@$(BIN)/python -m hessinit_book.verify $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(BUDGET),--budget $(BUDGET))

confirm: ## records of earlier code hold: EXPERIMENT=name (SEED=n NETWORKS="a b", or SAME_CODE=commit)
	@$(READY) 3.10
	@$(BIN)/python -m hessinit_book.verify --confirm $(EXPERIMENT) $(if $(SEED),--seed $(SEED)) $(if $(NETWORKS),--networks $(NETWORKS)) $(if $(SAME_CODE),--same-code $(SAME_CODE))

lint: ## ruff, pyright, codespell, stripped notebooks
	@$(READY) 3.10
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/ruff check && $(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/codespell
	$(BIN)/nbstripout --verify notebooks/*.ipynb

bench: ## the benchmarks
	@$(READY) 3.10
	$(BIN)/python -m benchmarks.dense_first_layer
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.modern
	$(BIN)/python -m benchmarks.architectures
	$(BIN)/python -m benchmarks.training

zoo: ## diagnose on sound networks and planted faults: false alarms and misses
	@$(READY) 3.10
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[zoo]'
	$(BIN)/python -m hessinit_book.zoo

slurm: ## a sweep on a SLURM of one node, with a job killed (needs slurm-wlm and munge)
	@$(READY) 3.11
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[slurm]'
	$(BIN)/python -m pytest -m slurm tests/test_slurm.py

lock: ## refresh constraints.txt: newest versions for all Pythons (needs uv)
	uv pip compile --universal --python-version 3.10 --upgrade --no-annotate --no-header \
	  --extra dev --extra lightning --extra slurm --extra zoo pyproject.toml -o constraints.txt

clean: ## all that was built; the records under results/paper and .venv stay
	rm -rf _build .snakemake results/quick results/smoke

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
