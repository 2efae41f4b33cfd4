# dbguard. `make test` needs Python 3.11 or later and nothing else; it makes .venv and leaves the system alone, but as
# root on Debian it installs the few programs that some tests use.

SHELL := /bin/bash
# The system's Python, which the packages run on; it is built with optimisation, and takes 4/5 of the time of others.
PYTHON ?= $(shell for it in /usr/bin/python3 python3; do \
  "$$it" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$it" && exit; done; echo python3)
PY := .venv/bin/python
SECONDS ?= 600
# Against what hangs: 20 minutes are usual, a busy host takes three times that or more.
PYTEST_LIMIT ?= 5000
PROGRAMS := mandoc:mandoc strace:strace sqlite3:sqlite3 mmdebstrap:mmdebstrap systemd-nspawn:systemd-container pg_ctlcluster:postgresql patchelf:patchelf

# Neither make nor the shell may read orders in the name of a file.
unexport DB
export DEMO_DB = $(value DB)

.PHONY: help demo test lint bench soak deb rpm clean programs
.DEFAULT_GOAL := help

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: .venv/installed ## protect a live database, prove it, lose it, get it back (DB=PATH: your own, only read)
	@$(PY) -m tests.demo "$$DEMO_DB"

test: .venv/installed programs ## lint, types, layers and every test; fails if anything does
	@failed=""; report=""; \
	step() { \
	  local name="$$1" began=$$(date +%s) result=ok; shift; \
	  printf '\n== %s\n' "$$name"; \
	  "$$@" || { result="FAILED ($$?)"; failed=yes; }; \
	  report+="$$(printf '  %-8s %-12s %4d s' "$$name" "$$result" $$(($$(date +%s) - began)))"$$'\n'; \
	}; \
	step ruff .venv/bin/ruff check; \
	step format .venv/bin/ruff format --check; \
	step types .venv/bin/mypy; \
	step layers .venv/bin/lint-imports --no-logo; \
	step pytest timeout --foreground --kill-after=60 --signal=INT $(PYTEST_LIMIT) $(PY) -m pytest -m "not soak" -n 3 --dist loadfile --no-loadscope-reorder -rfEs --durations=20; \
	printf '\n%s' "$$report"; \
	if [ -n "$$failed" ]; then echo "FAILED"; exit 1; fi; echo "all good"

lint: .venv/installed ## the quick part of test: ruff, mypy, layers
	@.venv/bin/ruff check && .venv/bin/ruff format --check && .venv/bin/mypy && .venv/bin/lint-imports --no-logo

bench: .venv/installed ## dbguard beside its peers on the same file
	@.venv/bin/py-spy --version >/dev/null 2>&1 || $(PY) -m pip install -qq --disable-pip-version-check -e '.[bench]' || echo "without py-spy no row says which functions take its time"
	@$(PY) -m tests.bench

soak: .venv/installed ## write, back up, kill and restore for SECONDS=600
	@$(PY) -m tests.soak $(SECONDS)
	@$(PY) -m tests.soak_follow $(SECONDS)
	@SOAK_SECONDS=$(SECONDS) $(PY) -m pytest -q -m soak
	@$(PY) -m pytest -q --hypothesis-profile=random $(shell grep -rl '^from hypothesis import' tests --include='test_*.py')
	@MOMENTS=100 $(PY) -m pytest -q tests/engines/test_postgresql_moment.py -k a_moment_has

# Packages are for the system's own Python, and the first step alone needs the network.
wheels = PATH=/usr/bin:$$PATH packaging/fetch build/wheels
# $(call needs,PROGRAMS AND FILES,COMMAND): name all that is missing, and the one command that brings it.
needs = missing=""; \
  for it in $(1); do \
    case $$it in /*) test -e $$it ;; *) command -v $$it >/dev/null ;; esac || missing+=" $$it"; \
  done; \
  if [ -n "$$missing" ]; then echo "make $@ needs$$missing. As root: $(2)" >&2; exit 1; fi
headers = $(shell /usr/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)/Python.h
ensurepip = $(shell /usr/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))' 2>/dev/null)/ensurepip
debian = build-essential debhelper dh-python python3-dev python3-venv

deb: ## the package for the release of Debian that this is, in dist/
	@$(call needs,/usr/bin/python3 dpkg-buildpackage gcc dh dh_python3 $(headers) $(ensurepip),apt-get install $(debian))
	@$(wheels) && packaging/build-deb . build/wheels dist && ls dist/*.deb

rpm: ## the package for this distribution's Python, in dist/
	@$(call needs,/usr/bin/python3 rpmbuild gcc $(headers) $(ensurepip),dnf install rpm-build gcc python3-devel (Debian: apt-get install rpm gcc python3-dev python3-venv))
	@$(wheels) && packaging/build-rpm . build/wheels dist && ls dist/*.rpm

clean: ## remove what make made
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .demo .bench
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/installed: pyproject.toml
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "dbguard needs Python 3.11 or later; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; \
	fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv; \
	  else \
	    echo "Python's venv is missing. As root: apt-get install python3-venv" >&2; exit 1; \
	  fi; \
	fi
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf .venv; $(PYTHON) -m venv .venv; }
	@$(PY) -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

# What cannot be had is no failure: the tests that need it say that they were skipped, and why.
programs:
	@missing=""; for pair in $(PROGRAMS); do command -v $${pair%:*} >/dev/null || missing+=" $${pair#*:}"; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } \
	    >/dev/null || true; \
	fi; \
	for pair in $(PROGRAMS); do \
	  command -v $${pair%:*} >/dev/null || \
	    echo "$${pair%:*} is missing: tests that need it are NOT RUN (apt-get install $${pair#*:})"; \
	done
