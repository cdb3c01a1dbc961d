# Every target sets up what it needs. STACK says which: cpu or gpu (default: gpu where nvidia-smi is found).
STACK ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
# Python 3.11 or 3.12: make setup PYTHON=python3.12, in a checkout without .venv and .build.
PYTHON ?= python3.11
UV := .build/uv/bin/uv
BIN := .venv/bin

# One busy thread per process: processes that share cores are many times slower with more.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED = 0
export VLLM_NO_USAGE_STATS = 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: setup trackers harness demo check test test-unit test-faults test-long bench bench-learner bench-store bench-pregen bench-semi-online bench-plan bench-data real-weights format lock clean

setup: .venv/.done-$(STACK)

.venv/.done-$(STACK): requirements/$(STACK).txt pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	@# Compiled once here, half a minute: every actor is a process that imports torch or vLLM anew.
	VIRTUAL_ENV=.venv $(UV) pip sync --quiet --compile-bytecode requirements/$(STACK).txt
	VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-deps --editable .
	@rm -f .venv/.done-*
	@touch $@

.venv/.done-bench: .venv/.done-$(STACK) requirements/bench.txt | $(UV)
	VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-deps --requirement requirements/bench.txt
	@touch $@

# wandb, mlflow and trackio (docs/TRACKERS.md), beside the stack's TensorBoard.
trackers: .venv/.done-trackers

.venv/.done-trackers: .venv/.done-$(STACK) requirements/trackers.txt | $(UV)
	VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-deps --requirement requirements/trackers.txt
	@touch $@

# lmms-eval for masters-ray benchmark: beside the stack, as it holds protobuf and filelock back.
harness: .harness/.done-$(STACK)

.harness/.done-$(STACK): requirements/$(STACK).txt requirements/harness.txt | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .harness
	VIRTUAL_ENV=.harness $(UV) pip sync --quiet requirements/$(STACK).txt
	VIRTUAL_ENV=.harness $(UV) pip install --quiet --no-deps --requirement requirements/harness.txt
	@rm -f .harness/.done-*
	@touch $@

$(UV):
	$(PYTHON) -m venv .build/uv
	.build/uv/bin/pip install --quiet --disable-pip-version-check uv==0.13.9

# The whole method on the toy pair: two to three minutes on two cores.
demo: setup
	$(BIN)/python -m examples.easy_vqa
	$(BIN)/masters-ray run conf/demo.yaml

# The pair of conf/real_weights.yaml, from SmolLM2-135M's weights: teacher and student side by side, about forty minutes.
# A killed call goes on where it stopped.
real-weights: .venv/.done-bench
	$(BIN)/python -m examples.easy_vqa
	$(BIN)/python -m examples.real_weights.build --only student & student=$$!; \
	$(BIN)/python -m examples.real_weights.build --only teacher; teacher=$$?; wait $$student && exit $$teacher

check: setup
	$(BIN)/ruff format --check masters_ray examples jobs tests bench
	$(BIN)/ruff check masters_ray examples jobs tests bench
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tests.house
	$(BIN)/mypy

# Two files of tests at a time: one often waits for a process that starts. Each pair of lanes needs 8 GB of memory.
LANES ?= 2
LANED = -n $(LANES) --dist loadfile --no-loadscope-reorder

# With the pretrained weights that some tests read, 93 MB, and the trackers, 90 MB beside the stack.
test: check .venv/.done-bench .venv/.done-trackers
	$(BIN)/python -m pytest $(LANED)

test-unit: setup .venv/.done-trackers
	$(BIN)/python -m pytest $(LANED) tests/unit

# All benchmarks, for a machine with nothing else to do.
bench: bench-learner bench-store bench-pregen bench-semi-online bench-plan bench-data

# The learner against TRL and against itself; docs/BENCHMARKS.md says what is measured.
bench-learner: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.learner

# What stored teacher scores weigh, how exact they are and how fast they are read.
bench-store: .venv/.done-bench
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.store

# What making rollouts costs beside the engines' own work.
bench-pregen: setup
	$(BIN)/python -m examples.easy_vqa
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.pregen

# What reading data costs.
bench-data: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.data

# How far plans are from real runs.
bench-plan: .venv/.done-bench
	$(BIN)/python -m examples.easy_vqa
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.plan

# What online iterations cost, measured and forecast.
bench-semi-online: setup
	$(BIN)/python -m examples.easy_vqa
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.semi_online

# Faults of every kind while rollouts are made, ROUNDS times, six minutes each on two cores.
ROUNDS ?= 20
test-faults: setup
	MASTERS_FAULT_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest -s tests/faults

# All end-to-end tests, with those that take minutes: replicas that die, damaged weights, a kill between online
# iterations, turns on one machine, a study, an audit, lmms-eval, all that is not the default.
test-long: setup harness .venv/.done-trackers
	MASTERS_LONG=1 $(BIN)/python -m pytest tests/e2e tests/families

format: setup
	$(BIN)/ruff check --fix --select I masters_ray examples jobs tests bench
	$(BIN)/ruff format masters_ray examples jobs tests bench

# Pins for both stacks from pyproject.toml's extras; requirements/bench.txt and trackers.txt are written by hand.
lock: | $(UV)
	$(UV) pip compile --quiet --upgrade --python $(PYTHON) --extra cpu --extra dev --override requirements/overrides-cpu.txt \
		--no-header --no-annotate pyproject.toml --output-file requirements/cpu.txt
	$(UV) pip compile --quiet --upgrade --python $(PYTHON) --extra gpu --extra dev --override requirements/overrides-gpu.txt \
		--no-header --no-annotate pyproject.toml --output-file requirements/gpu.txt
	@# Of the harness what it has beside the stack, or in another version; it is the same for both stacks.
	sed '/^filelock==/d; /^protobuf==/d' requirements/cpu.txt > .build/stack.txt
	$(UV) pip compile --quiet --python $(PYTHON) --extra cpu --extra dev --extra harness --no-header --no-annotate \
		--override requirements/overrides-cpu.txt --constraint .build/stack.txt pyproject.toml \
		| grep -vxFf requirements/cpu.txt > requirements/harness.txt

clean:
	rm -rf .venv .harness .build .mypy_cache .ruff_cache .pytest_cache .hypothesis
