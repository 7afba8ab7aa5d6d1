# make demo    set everything up and run the main job on real data
# make test    set everything up and run all tests, some in a virtual machine
# make test-pythons  the same on CPython 3.12 to 3.15, which it gets where it can (an hour and a half)
# make test-vm the attack suite in the virtual machine, as root and as users (an hour)
# PYTHON=...   the interpreter to link and to test with; VENV=... where its packages go

PYTHON ?= python3
VENV ?= .venv
export PYTHON VENV

# The interpreter that setup links: the one that the environment was made from.
CARGO_ENV = PYO3_PYTHON=$$(readlink -f $(VENV)/bin/python)

.PHONY: demo test test-pythons test-vm soak fuzz bench bench-memory lint audit docs setup clean

setup:
	@scripts/setup.sh

demo: setup
	@$(VENV)/bin/python examples/flights/demo.py

test: setup
	$(CARGO_ENV) cargo test --release --locked --quiet --bins
	$(VENV)/bin/python -m pytest tests
	tests/vm/run -- $(VENV)/bin/python -m pytest --color=no tests/vm

# The versions that CI does not have. PYTHONS="3.14 3.15" for these only.
test-pythons:
	@scripts/test_pythons.sh $(PYTHONS)

# The attack suite in a virtual machine with Debian's stock kernel, as root and as users.
test-vm: setup
	tests/vm/run --timeout 5400 -- $(VENV)/bin/python -m pytest --color=no tests/vm tests/security tests/test_run.py tests/api/test_contract.py
	tests/vm/run -- $(VENV)/bin/python -m pytest --color=no -s -m soak tests/vm
	tests/vm/run --timeout 3600 --user tester -- $(VENV)/bin/python -m pytest --color=no $(AS_USER)
	tests/vm/run --timeout 3600 --user plain -- $(VENV)/bin/python -m pytest --color=no $(AS_USER)

# What an ordinary user can arrange.
AS_USER = tests/vm tests/test_run.py tests/security/test_limits.py tests/security/test_landlock.py \
	tests/security/test_binds_and_hidden_paths.py tests/security/test_kernel_quotas.py tests/security/test_own_files.py \
	tests/security/test_planted_modules.py tests/api/test_contract.py

# Longer than a test run should take: tens of thousands of clones.
soak: setup
	$(VENV)/bin/python -m pytest tests -m soak

# What a client or a job may say, and much else: to the decoders alone, then to a living host.
fuzz: export FUZZ_SECONDS ?= 600
fuzz: setup
	$(CARGO_ENV) cargo test --release --locked --quiet --bins fuzz -- --nocapture --test-threads 8
	$(VENV)/bin/python -m pytest -s -m soak -k fuzzing tests/api tests/security

# Every figure of docs/performance.md, beside pyspawner 1.0.0 and others.
bench: setup
	$(VENV)/bin/python benches/compare.py

# Copies of earlier jobs' data in a child's memory, beside pyspawner 1.0.0.
bench-memory: setup
	$(VENV)/bin/python benches/inherited_data.py

lint: setup
	cargo fmt --check
	$(CARGO_ENV) cargo clippy --release --all-targets --locked -- -D warnings
	$(CARGO_ENV) RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --quiet --no-deps --document-private-items
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/python -m mypy --config-file mypy-tests.ini

# Advisories, licences and origins of what is linked, and of what the tests install. Needs the network.
CARGO_DENY = target/tools/bin/cargo-deny
$(CARGO_DENY):
	cargo install --quiet --locked --root target/tools --version 0.20.2 cargo-deny

audit: setup $(CARGO_DENY)
	$(CARGO_DENY) check
	$(VENV)/bin/python -m venv target/tools/pip-audit
	target/tools/pip-audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	target/tools/pip-audit/bin/pip-audit --strict --no-deps --disable-pip -r tests/requirements.txt

# The site: all pages, with search and the reference of the Python package. Links are checked.
docs: setup
	@VENV=$(VENV) scripts/docs.sh "$$PWD/target/docs"
	@echo "see target/docs/index.html"

clean:
	rm -rf target $(VENV) examples/flights/data demo-results.ndjson
