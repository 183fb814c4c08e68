# `make demo` sets everything up and runs the whole job; `make test` sets everything up and
# passes the tests. Both work from a bare clone with Python 3.11+ and make.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test format clean chromium

demo: $(READY)
	$(BIN)/spectra demo

test: $(READY) chromium
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Some tests click through the dashboard in Debian's own browser, and are skipped without one
# unless CI=true. It is installed where that needs no password, so that a fresh machine has it.
APT := apt-get install --yes --no-install-recommends chromium fonts-dejavu-core

chromium:
	@if command -v chromium >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then root=""; elif sudo -n true 2>/dev/null; then root="sudo -n"; \
	else root=none; fi; \
	if [ "$$root" != none ] && command -v apt-get >/dev/null \
		&& $$root apt-get update && $$root $(APT); then exit 0; fi; \
	echo "There is no Chromium for the browser tests. To run them: $(APT)" >&2

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv spectra-demo

# torch first and pinned: a looser install would pull in the gigabytes of another build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Spectra needs Python 3.11 or newer; give one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[all,dev]"
	touch $(READY)
