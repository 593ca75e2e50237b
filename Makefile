# `make demo` and `make test` need python3 (3.11 or newer), pip and make; everything else goes into .venv. The same tests on
# the oldest libraries that pyproject.toml admits, and on the newest that were tried: `make test-oldest`, `make test-newest`,
# which go into .venv-oldest and .venv-newest.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

EVIDENCE := runs/evidence
SWEEPS := collapse rate-distortion independent-against-temporal anti-causal

.PHONY: demo test test-oldest test-newest evidence docs format clean

.venv/installed: constraints.txt
.venv-oldest/installed: constraints-oldest.txt
.venv-newest/installed: constraints-newest.txt
.venv/installed .venv-oldest/installed .venv-newest/installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint $(filter constraints%,$^) --editable '.[twin,sweep,hub,parquet,dev]'
	touch $@

demo: .venv/installed
	rm -rf $(DEMO)
	$(BIN)/pyro-delta train --dataset digits --no-report --out $(DEMO)
	$(BIN)/pyro-delta evaluate $(DEMO)
	$(BIN)/pyro-delta sample $(DEMO) --num 64 --out $(DEMO)/samples.png
	$(BIN)/pyro-delta check $(DEMO)
	$(BIN)/pyro-delta report $(DEMO)
	@echo "the page: $(DEMO)/report.html"

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --durations 30

# The linter and the types are those of one version of the libraries.
test-oldest test-newest: test-%: .venv-%/installed
	OMP_NUM_THREADS=1 .venv-$*/bin/pytest -n 2 --dist loadfile

# The digits-sized forms of the paper's experiments, two seeds each, with their tables and figures.
evidence: .venv/installed
	for sweep in $(SWEEPS); do \
		$(BIN)/pyro-delta sweep $$sweep --seeds 2 --jobs 2 --out $(EVIDENCE)/$$sweep && \
		$(BIN)/pyro-delta compare $(EVIDENCE)/$$sweep --format markdown --out $(EVIDENCE)/$$sweep.md \
			--figure $(EVIDENCE)/$$sweep.png || exit 1; \
	done

# The site, every notebook run (minutes; what did not change comes from a cache), warnings as errors: docs/_build/html.
.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: .venv/docs
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 XDG_DATA_HOME="$(CURDIR)/docs/_build/user" \
		$(BIN)/python -m sphinx -W --keep-going -n -b html docs docs/_build/html
	@echo "the site: docs/_build/html/index.html"

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-oldest .venv-newest build dist docs/_build *.egg-info
