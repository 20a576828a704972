# Every command of the repository; `make` alone lists them. Words for the command itself go into ARGS.
# uv is the one on PATH; where there is none it is fetched into .uv/ once, by python3.

ifeq ($(shell command -v uv 2>/dev/null),)
uv := .uv/bin/uv
fetched := .uv/bin/uv
else
uv := uv
endif

# The whole workspace in one environment, as the lock has it, with the tools and every member's test needs.
whole := $(uv) run --locked --all-packages
papers := $(patsubst packages/%/pyproject.toml,%,$(wildcard packages/*/pyproject.toml))
folder = $(if $(filter $(1),$(papers)),packages/$(1),$(if $(filter $(1),paperkit),shared,$(error \
	no package $(1); there are: $(papers) paperkit)))

MAKEFLAGS += --no-print-directory
unexport VIRTUAL_ENV    # another project's environment: uv would warn about it on every line
unexport PYTHONDONTWRITEBYTECODE    # where it is set every command would compile PyTorch's sources again, seconds each
.PHONY: help train test lint results bench

help: ## this list (the default)
	@awk -F ':.*## ' '/^[a-z]+.*:.*## / { sub("%", "<paper>", $$1); printf "make %-18s %s\n", $$1, $$2 }' Makefile

train: $(fetched) ## train ign on real digits: minutes on a laptop (make train ARGS="--preset smoke")
	@$(uv) run --package ign train $(ARGS)

test: $(fetched) ## every test of the workspace, in one environment
	@$(whole) pytest $(ARGS)

test-%: $(fetched) ## the tests of one package, in the same environment (make test-ign)
	@$(whole) pytest $(call folder,$*) $(ARGS)

isolated-%: $(fetched) ## the same in a fresh environment that holds this package and what it declares
	@$(uv) run --isolated --locked --package $* pytest $(call folder,$*) $(ARGS)

lint: $(fetched) ## lock file, ruff, format, types, and whether the READMEs show the result files
	@$(uv) lock --check --quiet
	@$(whole) ruff check
	@$(whole) ruff format --check
	@$(whole) basedpyright
	@if [ -f tools/results.py ]; then $(whole) python tools/results.py --check; fi

results: $(fetched) ## render the result files into the tables of the READMEs
	@$(whole) python tools/results.py $(ARGS)

bench: $(fetched) ## every benchmark that runs on a CPU, one after the other
	@for script in $(sort $(wildcard shared/benchmarks/*.py)); do echo "== $$script"; \
	  $(uv) run --locked --package paperkit --group bench python $$script $(ARGS) || exit; done
	@for paper in $(papers); do $(whole) $$paper bench --help >/dev/null 2>&1 || continue; \
	  echo "== $$paper bench"; $(whole) $$paper bench $(ARGS) || exit; done

.uv/bin/uv:
	@command -v python3 >/dev/null 2>&1 || { echo "make: neither uv nor python3 is on PATH; install one" >&2; exit 1; }
	@python3 -m venv .uv >/dev/null 2>&1 || { \
	  echo "make: python3 cannot make environments; install uv, or python3-venv" >&2; exit 1; }
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.11'
