# make demo      the whole chain on the shipped images, on this CPU       make up     Prefect server, worker, deployments
# make test      checkers and tests that need only Python packages        make down   stop what `make up` started
# make test-all  these and the slow end-to-end tests
# make parity    the model against torch, transformers and onnxruntime    make peers  install what benchmarks compare with
# make test-privileged    as root: disks that are really full, files of other users
# make test-pillow-images validation of every file of Pillow's own tests, from its source package

PYTHON ?= python3.11
bin := .venv/bin
pytest := $(bin)/pytest -n 2 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-all test-fast test-slow check parity peers test-privileged test-pillow-images up down

demo: .venv/.installed
	$(bin)/python -m flows.pretrain configs/demo.yaml

test: .venv/.installed-test
	$(MAKE) --jobs 2 check test-fast

test-all: test test-slow

test-fast: .venv/.installed-test
	$(pytest) -m 'not privileged and not slow'

test-slow: .venv/.installed-test
	$(pytest) -m slow

check: .venv/.installed-test
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/lint-imports

test-privileged: .venv/.installed-test
	$(bin)/pytest -m privileged

parity: .venv/.installed-parity
	$(pytest) -m parity

test-pillow-images: .venv/.installed-test
	$(bin)/pip download --quiet --no-binary pillow --no-deps pillow -c constraints.txt -d .venv/pillow
	tar -xzf .venv/pillow/pillow-*.tar.gz -C .venv/pillow --strip-components=1
	PILLOW_IMAGES=.venv/pillow/Tests/images $(bin)/pytest tests/datasets/validation/test_pillow_images.py

peers: .venv/.installed-parity
	$(bin)/pip install --quiet --only-binary :all: -e '.[bench]' -c constraints.txt
	$(bin)/pip install --quiet --no-deps mosaicml-streaming -c constraints.txt

up: .venv/.installed
	$(bin)/python -m flows.server up

down: .venv/.installed
	$(bin)/python -m flows.server down

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(bin)/pip install --quiet --only-binary :all: -e . -c constraints.txt
	touch $@

.venv/.installed-test: .venv/.installed
	$(bin)/pip install --quiet --only-binary :all: -e '.[test]' -c constraints.txt
	touch $@

.venv/.installed-parity: .venv/.installed-test
	$(bin)/pip install --quiet --only-binary :all: -e '.[parity]' -c constraints.txt
	touch $@
