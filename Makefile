# Every command of this project. Each sets up what it needs, from nothing but make and a Python with venv.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
IMAGE ?= tinybird-proxy:dev
TARGET ?= proxy
UV_VERSION := 0.13.9
# Most tests wait for something: more processes than processors. A file stays in one of them.
TEST_PROCESSES ?= 3

SOURCES := proxy operator tests
VENV := .venv
DEMO_VENV := .cache/demo
UV := .cache/uv-$(UV_VERSION)/bin/uv
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-input
CONFORMANCE := tests/proxy/conformance

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(DEMO_VENV)/.project ## see the proxy at work against an emulated Tinybird (DEMO_SECONDS=n stops by itself)
	@$(DEMO_VENV)/bin/tinybird-proxy demo

.PHONY: test
test: lint conformance-clients chart-tools ## check everything: format, lint, types, import rules, tests
	$(VENV)/bin/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

.PHONY: lint
lint: $(VENV)/.project ## format, lint, types and import rules only
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/mypy $(SOURCES)
	$(VENV)/bin/lint-imports --no-logo

.PHONY: format
format: $(VENV)/.project ## rewrite the sources in the project's format
	$(VENV)/bin/ruff check --fix-only $(SOURCES)
	$(VENV)/bin/ruff format $(SOURCES)

# dev first: it holds everything, and the others take their versions from it, so that what is tested is what runs.
.PHONY: lock
lock: COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --custom-compile-command 'make lock, or make lock UPGRADE=--upgrade for newer versions' $(UPGRADE)
lock: $(UV) ## write locks/ from pyproject.toml (UPGRADE=--upgrade: newest versions)
	$(COMPILE) pyproject.toml --all-extras --group dev --output-file locks/dev.txt
	$(COMPILE) pyproject.toml --extra otlp --constraints locks/dev.txt --output-file locks/proxy.txt
	$(COMPILE) pyproject.toml --extra operator --constraints locks/dev.txt --output-file locks/operator.txt
	$(COMPILE) pyproject.toml --extra otlp --extra demo --constraints locks/dev.txt --output-file locks/demo.txt
	$(COMPILE) --group build --constraints locks/dev.txt --output-file locks/build.txt

.PHONY: bench
bench: $(VENV)/.project ## measure throughput and latency
	@if [ -x tests/bench/run ]; then PATH="$(CURDIR)/$(VENV)/bin:$$PATH" tests/bench/run; \
	else echo "make bench: tests/bench/run is not here" >&2; exit 1; fi

# With the chart's own times for the Lease, not those of the tests. A short one:
# BENCH_OPTIONS="--resources 20 --with-pods 1 --idle-seconds 30"
.PHONY: bench-operator
bench-operator: $(VENV)/.project ## measure the operator with 200 resources on a real Kubernetes, as root
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" COMMAND=tests/e2e/bench_operator \
	HELM_OPTIONS="--set lease.durationSeconds=15,lease.renewDeadlineSeconds=10,lease.retryPeriodSeconds=2" \
	tests/e2e/run $(BENCH_OPTIONS)

# buildah needs no daemon. BASE=... builds on another image than the Dockerfile's own.
.PHONY: image
image: BUILD_ARGS = --target $(TARGET) --tag $(IMAGE) $(if $(BASE),--build-arg BASE=$(BASE)) \
	--build-arg VERSION=$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' proxy/tinybird_proxy/__init__.py)
image: ## build a container image (IMAGE=name:tag, BASE=image, TARGET=operator) with docker or buildah
	@if docker version >/dev/null 2>&1; then set -x; docker build $(BUILD_ARGS) .; \
	elif command -v buildah >/dev/null; then set -x; buildah --storage-driver vfs bud --isolation chroot $(BUILD_ARGS) .; \
	else echo "make image: needs a running Docker daemon, or buildah" >&2; exit 1; fi

# See tests/e2e/run for what may be set, and tests/cluster/README.md for what it needs.
.PHONY: e2e
e2e: $(VENV)/.project ## run the end-to-end tests on a real Kubernetes, as root (KUBECONFIG=file: on another cluster)
	@PYTEST=$(VENV)/bin/pytest tests/e2e/run

.PHONY: clean
clean: ## remove everything that the other targets made, except images
	rm -rf $(VENV) .cache dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .benchmarks
	rm -rf $(CONFORMANCE)/node_modules $(CONFORMANCE)/.venvs
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# The official clients that the conformance tests drive. Without Node those tests are skipped, and CI fails on a skip.
.PHONY: conformance-clients
conformance-clients: $(VENV)/.project
	@if [ ! -f $(CONFORMANCE)/install ]; then :; \
	elif node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null; then sh $(CONFORMANCE)/install; \
	else echo "Node 20 or newer was not found: the tests that need it will be skipped."; fi

# helm and promtool, for the tests of the charts. Without Go those tests are skipped, and CI fails on a skip.
.PHONY: chart-tools
chart-tools: $(VENV)/.project
	@if PATH="$$PATH:/usr/local/go/bin" command -v go >/dev/null; then PYTHON=$(VENV)/bin/python sh tests/charts/install-tools; \
	else echo "Go was not found: the tests of the charts that need helm will be skipped."; fi

# An environment in two steps: what the lock names, and then the project itself in place, built with what is locked.
define create-venv
	@found="$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null)"; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed; $(PYTHON) is $${found:-missing}." \
			"Name another one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: ensurepip is missing." \
			"On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(@D) from $(filter locks/%,$^)"
	@$(PYTHON) -m venv --clear $(@D)
endef

define install-project
	@$(@D)/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@$(@D)/bin/python -m pip --disable-pip-version-check check >/dev/null || { \
		$(@D)/bin/python -m pip --disable-pip-version-check check; \
		echo "The lock files do not fit pyproject.toml: run make lock" >&2; exit 1; }
	@touch $@
endef

# PIP_USE_PEP517: older pips would run the setup.py of the one package that comes without a wheel (forbiddenfruit).
$(VENV)/.locked: locks/dev.txt
	$(create-venv)
	@PIP_USE_PEP517=1 $(@D)/bin/python $(PIP_INSTALL) --require-hashes --requirement locks/dev.txt
	@touch $@

$(DEMO_VENV)/.locked: locks/demo.txt locks/build.txt
	$(create-venv)
	@$(@D)/bin/python $(PIP_INSTALL) --require-hashes --requirement locks/demo.txt --requirement locks/build.txt
	@touch $@

$(VENV)/.project: $(VENV)/.locked pyproject.toml
	$(install-project)

$(DEMO_VENV)/.project: $(DEMO_VENV)/.locked pyproject.toml
	$(install-project)

$(UV):
	@$(PYTHON) -m venv --clear $(abspath $(@D)/..)
	@$(@D)/python $(PIP_INSTALL) uv==$(UV_VERSION)
