# make demo   a small model learns to think: install, train, evaluate; interrupt it and run it again as you like
# make paper  does it really think? controls, thinking only where it pays: tables and pictures in out/paper
# make test   the tests, and the linter

PYTHON ?= python3
OUT ?= out/demo
SEED ?= 1337
PY = .venv/bin/python
OURS = model.py quiet_star.py fast.py train.py eval.py sample.py beyond lib data studies tests

.PHONY: demo paper test

demo: .venv/for_demo
	$(PY) train.py --config=config/arithmetic_base.toml --out=$(OUT)/base --seed=$(SEED)
	$(PY) data/arithmetic/check.py --run=$(OUT)/base
	$(PY) -m studies.demo --out=$(OUT) --seed=$(SEED)
	$(PY) eval.py --run=$(OUT)/quiet_star

paper: .venv/for_demo
	$(PY) -m studies

test: .venv/for_test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses=8 --dist=worksteal
	$(PY) -m ruff check $(OURS)
	$(PY) -m ruff format --check $(OURS)

.venv/for_demo: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/for_test: .venv/for_demo requirements-test.txt requirements-test-no-deps.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-test-no-deps.txt
	touch $@
