# Two commands matter: `make chat` (talk to the default model) and `make test` (every check).
# Both set up .venv in this folder first; that is skipped when nothing changed.
# ARGS are passed on: make chat ARGS="--temperature 0", make test ARGS="-k tokenizer".

VENV := .venv
BIN  := $(VENV)/bin

.PHONY: help chat test soak test-arm arm-report lint format build clean setup-chat setup-test

help:
	@echo "make chat       set up, then talk to SmolLM2-135M-Instruct"
	@echo "make test       set up with the test tools, then lint and test"
	@echo "make soak       random histories of sessions and requests for an hour; MINUTES=5 for as many"
	@echo "make test-arm   every test of the kernels on emulated ARM processors ('make test' has a twentieth of their examples)"
	@echo "make arm-report what the hot loops cost on ARM, by llvm-mca, into benchmarks/arm.json and arm.md"
	@echo "make lint       ruff, mypy and import-linter"
	@echo "make format     let ruff format and fix the source"
	@echo "make build      build the wheel into dist/"
	@echo "make clean      remove .venv and everything built"

chat: setup-chat
	@$(BIN)/edgerun chat $(ARGS)

test: lint
	@$(BIN)/python -m pytest $(ARGS)

soak: setup-test
	@EDGERUN_STATEFUL_MINUTES=$${MINUTES:-60} $(BIN)/python -m pytest tests/engine/test_stateful.py $(ARGS)

test-arm: setup-test
	@sh .ci/arm.sh
	@EDGERUN_EXAMPLES=$${EDGERUN_EXAMPLES:-1} $(BIN)/python -m pytest tests/arm $(ARGS)

arm-report: setup-test
	@$(BIN)/python -m benchmarks.arm.report $(ARGS)

lint: setup-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=.:kernels:exporters $(BIN)/lint-imports

format: setup-test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

build: setup-test
	@rm -rf build
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:
	rm -rf $(VENV) .arm build dist *.egg-info kernels/edgerun_kernels/objects .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
	find edgerun kernels exporters tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

setup-chat:
	@sh .ci/setup.sh export

setup-test:
	@sh .ci/setup.sh export,test,dev
