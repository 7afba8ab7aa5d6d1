# make demo    set everything up and run the main job on real data
# make test    set everything up and run all tests
# PYTHON=...   the interpreter to link and to test with; VENV=... where its packages go

PYTHON ?= python3
VENV ?= .venv
export PYTHON VENV

# The interpreter that setup links: the one that the environment was made from.
CARGO_ENV = PYO3_PYTHON=$$(readlink -f $(VENV)/bin/python)

.PHONY: demo test soak lint setup clean

setup:
	@scripts/setup.sh

demo: setup
	@$(VENV)/bin/python examples/flights/demo.py

test: setup
	$(CARGO_ENV) cargo test --release --locked --quiet --lib
	$(VENV)/bin/python -m pytest tests

# Longer than a test run should take: tens of thousands of clones.
soak: setup
	$(VENV)/bin/python -m pytest tests -m soak

lint: setup
	cargo fmt --check
	$(CARGO_ENV) cargo clippy --release --all-targets --locked -- -D warnings

clean:
	rm -rf target $(VENV) examples/flights/data demo-results.ndjson
