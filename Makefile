PYTHON ?= python3
UV_VERSION = 0.13.8

# Snakemake's jobs and the tests find nap-bench on the PATH without an activated environment.
RUN = PATH="$(CURDIR)/.venv/bin:$$PATH"

GENERATED = $(wildcard .venv .uv build nap_bench.egg-info .snakemake logs mlflow.db mlflow.db.lock mlartifacts \
              .pytest_cache .ruff_cache .hypothesis $(addprefix reports/,quick laptop workstation paper))
COMPUTED = $(wildcard store results)

.PHONY: help env cluster reproduce quick test test-all test-cluster browser dashboard lint lock clean

help:  ## this list (the default)
	@sed -n 's/^\([a-z-]*\):.*  ## /\1  /p' Makefile | awk '{ name = $$1; $$1 = ""; printf "make %-10s %s\n", name, $$0 }'

env:  ## install the pinned environment into .venv; instant when it is there
	@command -v $(PYTHON) >/dev/null || { echo "make env: wanted Python 3.11, found no $(PYTHON) on the PATH." \
	  "Install it (Debian: apt-get install python3 python3-venv), or name one: make env PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) requirements/install.py

cluster: env  ## besides, what a login node needs to send runs to SLURM
	@cmp -s requirements/cluster.txt .venv/cluster.txt || \
	{ .venv/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/cluster.txt && \
	  cp requirements/cluster.txt .venv/cluster.txt; }

# Runs Snakemake, and says where the report $(2) is, also when runs failed: the report names them.
define snakemake
	@code=0; $(RUN) snakemake $(1) --cores all --config scale=laptop || code=$$?; \
	found=$(2); [ $$code = 0 ] || found=reports/laptop/partial.html; \
	if [ -e $$found ]; then echo "Report:    $(CURDIR)/$$found"; else echo "Report:    none was made; the reason is above"; fi; \
	if [ -e mlflow.db ]; then echo "Dashboard: make dashboard"; fi; exit $$code
endef

reproduce: env  ## the whole suite at laptop scale; says where the report is
	$(call snakemake,,reports/laptop/index.html)

quick: env  ## one exhibit of it, in about 90 seconds
	$(call snakemake,quick,reports/quick/laptop/index.html)

test: cluster  ## the tests; those that need a browser only where there is one
	@$(RUN) OMP_NUM_THREADS=1 pytest -n 2 --dist worksteal

test-all: cluster browser  ## all tests that need no GPU, slow ones and the browser's included
	@$(RUN) OMP_NUM_THREADS=1 pytest -n 2 --dist worksteal -m "not gpu and not apptainer and not slurm" --require-browser

test-cluster: cluster  ## a real image is built and used, a real SLURM is started; each only where its programs are
	@$(RUN) pytest -m "apptainer or slurm" --timeout 3600

browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update && apt-get install --yes chromium; } || \
	{ echo "make test-all: wanted a browser, found no chromium, chromium-browser or google-chrome on the PATH." \
	  "Install one (Debian: apt-get install chromium)." >&2; exit 1; }

dashboard: env  ## the runs in MLflow, in a browser
	@$(RUN) nap-bench dashboard

lint: env  ## ruff and snakefmt
	@$(RUN) ruff check .
	@$(RUN) snakefmt --check Snakefile workflows

# uv sees CPU wheels where UV_FIND_LINKS (or pip's own PIP_FIND_LINKS) says; without them the CPU lock fails and says so.
COMPILE = .uv/bin/uv pip compile --quiet --upgrade --python-version 3.11 --custom-compile-command "make lock"
HASHED = --generate-hashes --no-annotate --constraints requirements/constraints.txt
lock:  ## renew the three locks from requirements/requirements.in
	@test -x .uv/bin/uv || { $(PYTHON) -m venv .uv && .uv/bin/pip install --quiet uv==$(UV_VERSION); }
	$(COMPILE) --universal --fork-strategy fewest requirements/requirements.in -o requirements/constraints.txt
	sed -E 's/^(torch==[0-9.]+)/\1+cpu/' requirements/requirements.in | UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" \
	  $(COMPILE) $(HASHED) - -o requirements/lock-cpu.txt
	$(COMPILE) $(HASHED) requirements/requirements.in -o requirements/lock-cuda.txt

clean:  ## say what is freed, and remove what can be made again; results only with ALL=yes
	@set -- $(GENERATED) $(if $(filter yes,$(ALL)),$(COMPUTED)); \
	if [ $$# -gt 0 ]; then echo "Removing:"; du -shc "$$@"; rm -rf "$$@"; else echo "Nothing to remove."; fi
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@set -- $(if $(filter yes,$(ALL)),,$(COMPUTED)); \
	if [ $$# -gt 0 ]; then echo "Kept, because it took compute (make clean ALL=yes removes it too):"; du -sh "$$@"; fi
