# make setup    .venv with everything that is needed here: 2.5 GB
# make demo     export and verify the example run, a pruned tiny-llava; then the page on 127.0.0.1:7860.
#               Installs into .venv only what this needs: 1.6 GB
# make whole    the whole job: prune, export, verify, evaluate, bench; then the page
# make test     all tests, the slow ones too
# make coverage the same tests, counting lines and branches: build/coverage/html/index.html
# make check    style, format, types, and which module may import which
# make docs     write docs/reference/cli.md and docs/reference/plan.schema.json anew
# make site     the documentation as a site: build/site/index.html
# make results  the measurements behind README's table, into docs/results/rates.md
# make clean    remove caches and builds (not .venv, not runs/)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SITE_INSTALLED := $(VENV)/.installed-docs
FOR_DEMO := $(VENV)/.installed-demo
EXTRAS := demo,serve,train,test
DEMO_EXTRAS := demo,serve
RATES := 0.3 0.5 0.62 0.8
CLI := $(BIN)/comp-export

.PHONY: setup demo whole test coverage check docs site results clean

setup: $(INSTALLED)

# What one needs to type comp-export: it is not on the PATH.
define ready
	@echo "installed: $(CLI); to type comp-export, first: source $(BIN)/activate"
endef

# pip runs again only when what it is told has changed. The whole environment has all that the demo needs.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing everything, tests and TensorRT too, into $(VENV): 2.5 GB with the CPU's torch, some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]' -c constraints.txt
	@touch $@ $(FOR_DEMO)
	$(ready)

$(FOR_DEMO): pyproject.toml constraints.txt
	@echo "installing what the demo needs into $(VENV): 1.6 GB with the CPU's torch, some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -e '.[$(DEMO_EXTRAS)]' -c constraints.txt
	@touch $@
	$(ready)

demo: $(FOR_DEMO)
	$(CLI) quickstart
	$(CLI) demo

whole: $(FOR_DEMO)
	$(CLI) quickstart --whole
	$(CLI) demo

# A process a core, up to four, each with one thread; a process that runs out of tests takes over others.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

# Processes that tests start for themselves are not counted.
coverage: $(INSTALLED)
	mkdir -p build/coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal \
	  --cov --cov-report=html --cov-report=term

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(INSTALLED)
	$(BIN)/python -m comp.commands.cli_reference docs/reference

$(SITE_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e '.[docs]' -c constraints.txt
	touch $@

# Strict: a broken link, and anything loaded from another host, fails.
site: $(SITE_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Without the tower's own parameters 0.8 is out of reach: the tower is 18 % of the FLOPs.
results: $(INSTALLED)
	set -e; for rate in $(RATES); do \
	  run=runs/tiny-llava-$$rate; modes=vt,lt,lp; \
	  if [ $$rate = 0.8 ]; then modes=$$modes,vp; fi; \
	  test -f $$run/run.json || \
	    $(CLI) prune --model tiny-llava --rate $$rate --modes $$modes --out $$run --force; \
	  $(CLI) onnx $$run --force; \
	  $(CLI) verify $$run; \
	  $(CLI) eval $$run; \
	  $(CLI) bench $$run; \
	done
	$(BIN)/python -m serve.bench.results_table $(RATES:%=runs/tiny-llava-%) > docs/results/rates.partial
	mv docs/results/rates.partial docs/results/rates.md

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find comp export serve demo benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
