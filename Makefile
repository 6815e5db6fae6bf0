# make demo   the main job on real pictures: installs, fetches, sweeps, reports
# make test   all tests: every framework in a Python 3.10; core and torch, and the newest MindSpore, in the machine's own
#             python3 too
# Needs python3 >= 3.10, git, make; make test a Python 3.10 as well; no GPU. .venv, .venv310 and .venvms may be links
# to folders that are kept.
PYTHON ?= python3
BIN := .venv/bin
BIN310 := .venv310/bin
BINMS := .venvms/bin
HAS_MINDSPORE := $(shell $(PYTHON) -c "import sys; print('yes' if sys.version_info < (3, 13) else '')")
DEMO := outputs/solar_cells/demo
SLOW := test_bad_input test_cli test_report test_packaging test_style
FRAMEWORK_TESTS = tests/framework/test_conformance.py tests/plugins/test_corrections.py tests/plugins/test_devices.py tests/plugins/test_$(1)_plugin.py tests/seeds/test_seeds.py tests/seeds/test_seeds_$(1).py
PIP := -m pip install --quiet --editable
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test test-mindspore clean
demo: build/installed
	$(BIN)/layerwise-lr fetch elpv mobilenet_v2_imagenet
	$(BIN)/layerwise-lr train -m experiment=solar_cells optimizer.lr=1e-3,3e-3 \
	  grouping.layer_decay=0.75,0.9,1.0 seed=0,1,2 hydra.sweep.dir=$(DEMO)
	$(BIN)/layerwise-lr train -m experiment=solar_cells optimizer.lr=1e-3,3e-3 \
	  grouping=backbone_head seed=0,1,2 hydra.sweep.dir=$(DEMO)
	$(BIN)/layerwise-lr report $(DEMO)
	@printf '%s\n' '' 'Go on with:  . .venv/bin/activate' '             layerwise-lr train --help' \
	  '(or $(BIN)/layerwise-lr ... without activating)'

test: build/installed-dev build/installed-310 $(if $(HAS_MINDSPORE),test-mindspore)
	$(BIN310)/python -m pytest --framework oneflow $(call FRAMEWORK_TESTS,oneflow)
	$(BIN310)/python -m pytest --framework mindspore $(call FRAMEWORK_TESTS,mindspore)
	$(BIN310)/python -m pytest --framework megengine $(call FRAMEWORK_TESTS,megengine)
	$(BIN310)/python -m pytest $(SLOW:%=--ignore=tests/%.py)
	$(BIN)/python -m pytest

test-mindspore: build/installed-ms
	$(BINMS)/python -m pytest --framework mindspore $(foreach name,mindspore_plugin seeds_mindspore devices conformance,tests/test_$(name).py)

build/installed: pyproject.toml .ci/constraints.txt
	$(BIN)/python -c "" 2>/dev/null || $(PYTHON) -m venv "$$(readlink -f .venv)"
	$(BIN)/python $(PIP) '.[torch]' --constraint .ci/constraints.txt
	mkdir -p build && touch $@

build/installed-dev: build/installed
	$(BIN)/python $(PIP) '.[torch,dev]' --constraint .ci/constraints.txt
	touch $@

build/installed-310: pyproject.toml .ci/constraints310.txt
	$(BIN310)/python -c "" 2>/dev/null || "$$(.ci/python310)" -m venv "$$(readlink -f .venv310)"
	$(BIN310)/python $(PIP) '.[all,dev]' --constraint .ci/constraints310.txt
	mkdir -p build && touch $@

build/installed-ms: pyproject.toml .ci/constraints_mindspore.txt
	$(BINMS)/python -c "" 2>/dev/null || $(PYTHON) -m venv "$$(readlink -f .venvms)"
	$(BINMS)/python $(PIP) '.[torch,mindspore,dev]' --constraint .ci/constraints_mindspore.txt
	mkdir -p build && touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
