# make demo   the main job on real pictures: installs, fetches, sweeps, reports
# make test   all tests
# Needs python3 >= 3.10, git, make; no GPU. .venv may be a link to a folder that is kept.
PYTHON ?= python3
BIN := .venv/bin
DEMO := outputs/solar_cells/demo
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test clean
demo: build/installed
	$(BIN)/layerwise-lr fetch elpv mobilenet_v2_imagenet
	$(BIN)/layerwise-lr train -m experiment=solar_cells optimizer.lr=1e-3,3e-3 \
	  grouping.layer_decay=0.75,0.9,1.0 seed=0,1,2 hydra.sweep.dir=$(DEMO)
	$(BIN)/layerwise-lr train -m experiment=solar_cells optimizer.lr=1e-3,3e-3 \
	  grouping=backbone_head seed=0,1,2 hydra.sweep.dir=$(DEMO)
	$(BIN)/layerwise-lr report $(DEMO)

test: build/installed-dev
	$(BIN)/python -m pytest

build/installed: pyproject.toml .ci/constraints.txt
	$(BIN)/python -c "" 2>/dev/null || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[torch]'
	mkdir -p build && touch $@

build/installed-dev: build/installed
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[torch,dev]'
	touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
