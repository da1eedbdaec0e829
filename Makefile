# The two commands: `make book` and `make test`. Each works as the first one in a fresh
# clone, given Python, make and a package index; `make help` lists the rest.
PYTHON ?= python3
PROFILE ?= quick
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: book test paper verify confirm pdf lint bench zoo lock clean help

book: $(READY) ## the quick runs and the book, at _build/html/index.html (PROFILE=smoke: faster)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make book: this is Python %d.%d; Snakemake 9 needs 3.11 or newer: make book PYTHON=python3.12" % sys.version_info[:2])'
	@$(BIN)/python tools/build.py --config profile=$(PROFILE) --quiet rules
	@echo "The book: $(CURDIR)/_build/html/index.html"

test: $(READY) ## the tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

pdf: $(READY) ## the whole book as one file, _build/book.pdf (after `make book`; needs Chromium)
	@$(BIN)/python tools/pdf.py

paper: $(READY) ## the full-scale records, results/paper (needs the full data)
	@$(BIN)/python tools/build.py records --config profile=paper --quiet rules

verify: $(READY) ## the committed records: whole, current, the same again (SAMPLE=n BUDGET=seconds)
	@$(BIN)/python -m hessinit_book.verify $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(BUDGET),--budget $(BUDGET))

confirm: $(READY) ## records of earlier code hold: EXPERIMENT=name (SEED=n, or SAME_CODE=commit)
	@$(BIN)/python -m hessinit_book.verify --confirm $(EXPERIMENT) $(if $(SEED),--seed $(SEED)) $(if $(SAME_CODE),--same-code $(SAME_CODE))

lint: $(READY) ## ruff, pyright, codespell, stripped notebooks
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/ruff check && $(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/codespell
	$(BIN)/nbstripout --verify notebooks/*.ipynb

bench: $(READY) ## the benchmarks
	$(BIN)/python -m benchmarks.dense_first_layer
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.modern
	$(BIN)/python -m benchmarks.architectures
	$(BIN)/python -m benchmarks.training

zoo: $(READY) ## diagnose on sound networks and planted faults: false alarms and misses
	$(BIN)/pip install -q -c constraints.txt -e '.[zoo]'
	$(BIN)/python -m hessinit_book.zoo

lock: ## refresh constraints.txt: newest versions for all Pythons (needs uv)
	uv pip compile --universal --python-version 3.10 --upgrade --no-annotate --no-header \
	  --extra dev --extra lightning --extra zoo pyproject.toml -o constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "this is Python %d.%d; expected 3.10 or newer: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 14) and "this is Python %d.%d; gensim has no wheel for it, expected 3.13 or older: make PYTHON=python3.12" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean: ## all that was built; the records under results/paper and .venv stay
	rm -rf _build .snakemake results/quick results/smoke

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
