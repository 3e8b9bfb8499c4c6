# make demo: set everything up and run the whole job on phantoms; make test: set up, lint, test.
# make docs: the documentation, in site/.
# make image, make image-test: build and try the container image (docker/README.md).
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export IMAGE ENGINE BASE_IMAGE TORCH_CONSTRAINTS PIP_CONF CA_CERT BUILD_FLAGS

.PHONY: setup demo check test docs clean image image-test lock

demo: setup
	$(BIN)/mammo-pd demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mammo-pd needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	# Compiling all of 19,000 modules takes most of a minute, and a third of them is ever imported.
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

# Search works where a server shows it: python -m http.server --directory site
docs: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"

image:
	docker/image.sh build

image-test: image
	docker/image.sh test

# Versions and hashes of what the image holds, anew after a change of pyproject.toml or
# constraints.txt. Needs uv.
lock:
	docker/lock.sh

clean:
	rm -rf $(VENV) demo site
