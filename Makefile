# make demo      the whole chain on the shipped images, on this CPU       make up     Prefect server, worker, deployments
# make test      checkers and tests that need only Python packages        make down   stop what `make up` started
# make test-all  these and the slow end-to-end tests
# make parity    the model against torch, transformers and onnxruntime    make peers  install what benchmarks compare with
# make test-privileged    as root: disks that are really full, files of other users
# make test-pillow-images validation of every file of Pillow's own tests, from its source package
# make ranks-env          MindSpore 2.0 in .venv-ranks, for ranks on CANN 7; MINDSPORE=<a wheel of 2.2> installs that
# make test-older         training, evaluation and prediction with the interpreter of .venv-ranks; ONLY='-k prediction' chooses tests
# make test-ascend-release    the same with MindSpore 2.7 and Python 3.11, and the chain of the demo
# make test-matrix        both of these, and the chain of the demo with each Python of this machine
# make test-aarch64       as root: tests of the data stages and eight training steps on an emulated aarch64
#
# PYTHON=python3.12 chooses the interpreter and MINDSPORE=2.7.0 the release: see constraints/venv.

bin := .venv/bin
pytest := $(bin)/pytest -n 2 --dist loadfile --no-loadscope-reorder
one_epoch := --set pretrain.epochs=1 --set pretrain.warmup_epochs=0 --set finetune.epochs=1 --set finetune.warmup_epochs=0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHON MINDSPORE

.PHONY: demo test test-all test-fast test-slow check parity peers test-privileged test-pillow-images up down \
	ranks-env test-older test-ascend-release test-aarch64 test-matrix environment test-environment parity-environment

demo: environment
	$(bin)/python -m flows.pretrain configs/demo.yaml

test: test-environment
	$(MAKE) --jobs 2 check test-fast

test-all: test test-slow

test-fast: test-environment
	$(pytest) -m 'not privileged and not slow'

test-slow: test-environment
	$(pytest) -m slow

check: test-environment
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/lint-imports

test-privileged: test-environment
	$(bin)/pytest -m privileged

parity: parity-environment
	$(pytest) -m parity

test-pillow-images: test-environment
	$(bin)/pip download --quiet --no-binary pillow --no-deps pillow -c .venv/constraints.txt -d .venv/pillow
	tar -xzf .venv/pillow/pillow-*.tar.gz -C .venv/pillow --strip-components=1
	PILLOW_IMAGES=.venv/pillow/Tests/images $(bin)/pytest tests/datasets/validation/test_pillow_images.py

test-older: test-environment
	PYTHON= MINDSPORE= constraints/venv .venv-ranks older 2.0.0
	OTHER_PYTHON=.venv-ranks/bin/python $(bin)/pytest tests/older $(ONLY)

test-ascend-release: test-environment
	PYTHON= MINDSPORE= constraints/venv .venv-ascend older 2.7.0
	OTHER_PYTHON=.venv-ascend/bin/python $(bin)/pytest tests/older $(ONLY)
	.venv-ascend/bin/python -m flows.pretrain configs/demo.yaml --workspace .venv-ascend/workspace $(one_epoch)

test-aarch64: test-environment
	tests/aarch64/run

test-matrix: test-older test-ascend-release
	for number in 3.10 3.11 3.12; do \
		python=$$(constraints/python $$number) || { echo "no Python $$number here"; continue; }; \
		PYTHON=$$python MINDSPORE=2.10.0 constraints/venv .venv-$$number && .venv-$$number/bin/python \
			-m flows.pretrain configs/demo.yaml --workspace .venv-$$number/workspace $(one_epoch) || exit; \
	done

peers: parity-environment
	$(bin)/pip install --quiet --only-binary :all: -e '.[bench]' -c .venv/constraints.txt
	$(bin)/pip install --quiet --no-deps mosaicml-streaming==0.13.0

up: environment
	$(bin)/python -m flows.server up

down: environment
	$(bin)/python -m flows.server down

environment:
	constraints/venv .venv

test-environment:
	constraints/venv .venv test

parity-environment: test-environment
	constraints/venv .venv parity

ranks-env:
	constraints/venv .venv-ranks '' 2.0.0
