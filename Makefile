# `make demo` and `make test` need python3 (3.11 or newer), pip and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: demo test format clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[twin,sweep,dev]'
	touch $@

demo: .venv/installed
	rm -rf $(DEMO)
	$(BIN)/pyro-delta train --dataset digits --out $(DEMO)
	$(BIN)/pyro-delta evaluate $(DEMO)
	$(BIN)/pyro-delta sample $(DEMO) --num 64 --out $(DEMO)/samples.png
	@echo "the picture: $(DEMO)/samples.png"
	$(BIN)/pyro-delta check $(DEMO)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info
