# `make help` lists the targets. They install what they need into .venv, or .venv-cuda and so on for another device,
# because one environment can't hold two builds of onnxruntime.

EXTRA  ?= cpu
FITS   := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
            $$p -c '$(FITS)' 2>/dev/null && command -v $$p && break; done)
VENV   := $(patsubst %-cpu,%,.venv-$(EXTRA))
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

VARIANT ?= cpu

.PHONY: help run demo install upgrade uninstall test test-trust test-scale lint audit bench image test-image bump publish clean

help:
	@echo "make run         run the service (EXTRA=cuda or openvino for another device)"
	@echo "make demo        run the service offline with tiny demo models"
	@echo "make install     install it as a systemd service, as root (make upgrade after git pull; make uninstall)"
	@echo "make test        run the tests"
	@echo "make test-trust  test faults, load and bad input (LONG=1: for an hour)"
	@echo "make test-scale  test failing machines behind HAProxy, as root (LONG=1: more photos, and throughput)"
	@echo "make lint        check style, types, imports and workflows"
	@echo "make audit       look for known vulnerabilities in the installed libraries (needs a network)"
	@echo "make bench       compare the service with bare models, update docs/benchmarks.md (QUICK=1: two minutes, print only)"
	@echo "make image       build the image (VARIANT=cuda, openvino, armnn, rknn or rocm for another device)"
	@echo "make test-image  test the image on a stand-in for its base, with Docker, as root (LONG=1: on all)"
	@echo "make bump        move to another version of upstream (UPSTREAM=v2.5.7)"
	@echo "make publish     tag the pushed images of a release, from a clean version tag"

run: $(VENV)/run.done
	@exec $(BIN)/mt-photos-ml serve

demo: $(VENV)/run.done
	@exec $(BIN)/python -m demo .demo

test: $(VENV)/test.done .venv-oldest/oldest.done
	$(BIN)/pytest -n auto --dist loadfile $(ARGS)

test-trust: $(VENV)/test.done
	$(BIN)/pytest tests/trust -n 4 $(if $(LONG),--long) $(ARGS)

test-scale: $(VENV)/test.done
	$(BIN)/pytest tests/scale $(if $(LONG),--long) $(ARGS)

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy overlay/mt_photos_ml demo bench scripts tests
	$(BIN)/zizmor --offline --persona pedantic --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	@if command -v actionlint >/dev/null; then actionlint; else echo "actionlint was not found: skipped"; fi
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml deploy/haproxy/compose.yaml
	@if ! command -v kubectl >/dev/null; then echo "kubectl was not found: deploy/kubernetes is not checked"; else \
	  mkdir -p build; for each in deploy/kubernetes/overlays/* tests/kubernetes; do \
	    kubectl kustomize $$each -o build/kubernetes.yaml && \
	    $(BIN)/kubernetes-validate --strict --quiet build/kubernetes.yaml || exit 1; done; fi
	$(BIN)/lint-imports

audit: $(VENV)/test.done
	$(BIN)/pip-audit --skip-editable --progress-spinner=off

bench: $(VENV)/bench.done
	@$(BIN)/python -m bench $(or $(ARGS),$(if $(QUICK),--quick,--write))

install: $(VENV)/run.done
	@$(BIN)/python -m scripts.service install $(ARGS)

upgrade: $(VENV)/run.done
	@$(BIN)/python -m scripts.service upgrade $(ARGS)

uninstall:
	@$(BIN)/python -m scripts.service uninstall $(ARGS)

image: $(VENV)/test.done
	$(BIN)/python -m scripts.build --variant $(VARIANT)

test-image: $(VENV)/test.done
	$(BIN)/pytest tests/image -n 2 --dist loadfile $(if $(LONG),--long) $(ARGS)

bump: $(VENV)/test.done
	$(BIN)/python -m scripts.bump $(UPSTREAM)

publish: $(VENV)/test.done
	$(BIN)/python -m scripts.publish

clean:
	rm -rf $(VENV) .venv-oldest .bench .demo build *.egg-info overlay/*.egg-info

$(VENV)/venv.done:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed; set PYTHON=/path/to/it"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { test "$$(id -u)" = 0 && apt-get update -q && apt-get install -y -q python3-venv; } || \
	  { echo "Python's venv module is needed: sudo apt-get install python3-venv"; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version)"
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && touch $@

$(VENV)/run.done: $(VENV)/venv.done pyproject.toml constraints.txt VERSION
	@echo "installing the service ($(EXTRA)), once"
	@$(PIP) install -c constraints.txt -e '.[$(EXTRA),heic,ocr]' && touch $@

$(VENV)/bench.done: $(VENV)/run.done
	@echo "installing what the benchmark needs, once"
	@$(PIP) install -c constraints.txt -e '.[$(EXTRA),heic,ocr,bench]' && touch $@

# The tests compare with insightface, rapidocr 3.4 and cn-clip. They are installed without their dependencies, which
# include a second OpenCV that would overwrite ours and needs GUI libraries; the dependencies that they need are in the
# extra dev.
$(VENV)/test.done: $(VENV)/run.done
	@echo "installing what the tests need, once"
	@$(PIP) install -c constraints.txt -e '.[$(EXTRA),heic,ocr,dev]'
	@$(PIP) install -c constraints.txt --no-deps insightface cn-clip
	@$(PIP) install --no-deps --upgrade --target $(VENV)/rapidocr-3.4 'rapidocr==3.4.*' && touch $@

# The service with the libraries of the oldest base image, older than constraints.txt: tests/unit/test_oldest.py
.venv-oldest/oldest.done: $(VENV)/venv.done pyproject.toml VERSION tests/image/base/v2.5.6.txt
	@echo "installing the oldest libraries that the service supports, once"
	@rm -rf .venv-oldest && $(BIN)/python -m venv .venv-oldest
	@.venv-oldest/bin/python -m pip --disable-pip-version-check --quiet install \
	  -c tests/image/base/v2.5.6.txt -e '.[cpu]' && touch $@
