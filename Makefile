# make demo   a small model learns to think: install, train, evaluate; interrupt it and run it again as you like
# make share  after the demo: thinking everywhere, and at a quarter of the positions, against seconds of training
# make paper  does it really think? controls, ablations, thinking only where it pays: tables and pictures in out/paper
# make test   the tests, and the linter

PYTHON ?= python3
OUT ?= out/demo
SEED ?= 1337
PY = .venv/bin/python
QUIET = $(PY) train.py --init_from=$(OUT)/base --seed=$(SEED)

.PHONY: demo share paper test

demo: .venv/for_demo
	$(PY) train.py --config=config/arithmetic_base.toml --out=$(OUT)/base --seed=$(SEED)
	$(QUIET) --out=$(OUT)/lm_control --objective=lm
	$(QUIET) --out=$(OUT)/quiet_star
	for m in 0 3; do $(QUIET) --out=$(OUT)/thought_len_$$m --thought_len=$$m || exit $$?; done
	$(PY) eval.py --run=$(OUT)/quiet_star
	$(PY) -m studies.demo --out=$(OUT)

share: .venv/for_demo
	for at in all hard random; do for step in 5 10 15 20 30 40 60 80 120 160; do \
		if [ $$at = all ] && [ $$step -gt 80 ]; then break; fi; \
		$(QUIET) --out=out/share/$$at --think_at=$$at --min_lr_share=1 --max_steps=$$step --eval_every=0 --eval_texts=8 || exit $$?; \
		$(PY) eval.py --run=out/share/$$at || exit $$?; \
	done; done
	$(PY) -m studies.curve --runs=out/share/all,out/share/hard,out/share/random

paper: .venv/for_demo
	$(PY) -m studies

test: .venv/for_test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest

.venv/for_demo: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/for_test: .venv/for_demo requirements-test.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps mistral-common==1.13.1  # for its tokenizer.model
	touch $@
