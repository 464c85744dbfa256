# The same commands for a newcomer, a developer and the workflows in .github.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

KERNELS := setup.py $(wildcard lightning_nobp/csrc/*.cpp lightning_nobp/csrc/*.h)
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined

.PHONY: demo test lint types pytest test-reliability docs wheel bench sanitize clean

$(BIN)/python:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed: make PYTHON=python3.x'"
	$(PYTHON) -m venv $(VENV)

# A marker an install, so that a second `make` starts at once, and a changed pyproject.toml or kernel installs again.
$(VENV)/.installed: pyproject.toml $(KERNELS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(KERNELS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml $(KERNELS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@ $(VENV)/.installed

# Without the package: building needs neither torch nor anything of it.
$(VENV)/.installed-release: | $(BIN)/python
	$(BIN)/python -m pip install --quiet 'build>=1.2' 'twine>=6.1'
	@touch $@

demo: $(VENV)/.installed  ## train every recipe on the embedded digits and compare them
	$(BIN)/nobp compare 'digits/*'

test: lint types pytest  ## everything that must be green

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

pytest: $(VENV)/.installed-test
	$(BIN)/pytest --durations=15 --numprocesses=2 --dist=loadfile

test-reliability: $(VENV)/.installed-test  ## long proofs of what docs/reliability.md counts, and that page; not part of the tests
	$(BIN)/pytest tests/reliability -m reliability --timeout=7200 --counts=docs/reliability
	$(BIN)/python docs/make_reliability.py

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build/html

wheel: $(VENV)/.installed-release  ## sdist and wheel
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

bench: $(VENV)/.installed-test  ## measure everything in docs/performance.md again, and write it; not part of the tests
	$(BIN)/python tests/benchmarks/run_all.py

CXX ?= g++

sanitize: $(VENV)/.installed-test  ## the tests of the kernels, with every access to memory checked
	CFLAGS="$(SANITIZERS)" CXXFLAGS="$(SANITIZERS)" LDFLAGS="$(SANITIZERS)" $(BIN)/python setup.py --quiet build_ext \
		--build-lib build/sanitize --build-temp build/sanitize/objects
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 $(BIN)/pytest --kernels=build/sanitize/lightning_nobp/csrc -m "" --scale 0.1 \
		tests/functional/test_sparse_kernels.py tests/functional/test_sparse.py \
		tests/functional/quaternion/test_hadamard.py tests/functional/spiking tests/reliability/test_fuzzed_kernels.py

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build lightning_nobp/csrc/*.so
