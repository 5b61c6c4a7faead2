# Every target makes .venv ready first, which takes no time when nothing changed.
PY := .venv/bin/python
READY := .venv/.ready
N := 20

.PHONY: setup demo test check docs bench bench-scoring bench-training bench-thresholds chaos golden clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt .ci/setup.sh
	bash .ci/setup.sh
	touch $@

demo: $(READY)
	.venv/bin/losslens run demo

test: $(READY)
	bash .ci/browser.sh
	$(PY) -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder

check: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) -m pytest -q tests/unit/test_house.py

docs: $(READY)
	$(PY) -m sphinx -W --keep-going -q -c docs -d build/docs-read . build/docs

chaos: $(READY)
	$(PY) tests/bench/chaos.py --faults $(N)

bench: $(READY)
	set -e; for script in tests/bench/bench_*.py; do echo "== $$script"; $(PY) "$$script"; done

bench-scoring: $(READY)
	$(PY) tests/bench/bench_lm_eval.py

bench-training: $(READY)
	$(PY) tests/bench/bench_trainers.py

bench-thresholds: $(READY)
	$(PY) -m tests.bench.bench_thresholds

golden: $(READY)
	$(PY) -m pytest -q --golden

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
