# Everything here sets itself up: a fresh clone needs Python 3.11 and make, nothing else.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export PYTHONWARNINGS ?= ignore::DeprecationWarning

# what says in a minute that something is missing or out of place
HOUSE := $(addprefix tests/test_,architecture.py startup.py catalogue.py documents.py claims.py)

.PHONY: help setup try examples test fast check bench claims stale-claims honesty racing advice faults clean

help:            ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(READY)  ## the environment alone

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,language,dev,witness,cluster]'
	-$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gbnn==0.0.2
	@touch $(READY)

try: $(READY)    ## a first study: eight techniques of unlike slots on an embedded dataset
	$(BIN)/probatum try encouraging-loss conda selu-snn "tabm(k=16)" gradient-noise "gbnn(units=10)" h-calibration \
	  gradual-magnitude-pruning --data breast-cancer --seeds 8 --margin 0.03

examples: $(READY) ## studies: language, a stream, fine-tuning, active learning, five worlds; reports in probatum-runs/
	mkdir -p probatum-runs
	for name in language stream fine_tuning labels worlds; do \
	  $(BIN)/python examples/$$name.py --store probatum-runs/examples.sqlite --report probatum-runs/$$name.html || exit 1; done

test: $(READY)   ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

fast: $(READY)   ## the tests that take about a minute together
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m fast

check: $(READY)  ## lint, format, types beside house rules, and whether anything is missing: claims, tests, README commands
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	@$(BIN)/mypy >$(VENV)/mypy.txt 2>&1 & types=$$!; \
	$(BIN)/python -m pytest $(HOUSE); house=$$?; \
	wait $$types; types=$$?; cat $(VENV)/mypy.txt; test $$house -eq 0 -a $$types -eq 0

bench: $(READY)  ## speed, side by side, as ratios
	$(BIN)/python benchmarks/run.py

claims: $(READY) ## run every paper's claim and record the evidence
	$(BIN)/python -m probatum.claims.record

stale-claims: $(READY) ## only those whose evidence rests on code that changed since
	$(BIN)/python -m probatum.claims.record --stale

mutants: $(READY) ## change one sign, share or rule at a time and ask each technique's own tests whether they notice
	$(BIN)/python benchmarks/mutants.py --record

honesty: $(READY) ## how often the bench is wrong: A/A studies and planted effects
	$(BIN)/python -m probatum.bench.honesty

racing: $(READY) ## what racing over seeds saves, and how often it is wrong, beside the full grid
	$(BIN)/python -m probatum.bench.race_simulation

advice: $(READY) ## how good the order of `probatum advise` is: twenty tables left out in turn (hours; goes on where it stopped)
	$(BIN)/python benchmarks/advice.py --workers 0

faults: $(READY) ## 200 kills, a full disk in every place (root), 200 flips in stores and shipped folders: nothing lost, half or silent
	$(BIN)/python benchmarks/faults.py

clean:           ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache probatum-runs
