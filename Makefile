# make demo                                   set up, draw images, index them, search, write a page of results
# make demo PHOTOS=~/Pictures QUERY=x.jpg     the same on your own photos
# make test                                   the same environment; the tests that are not marked long
# make quick                                  of these the ones that are not marked slow
# make long                                   the others: kills, browsers, clusters, training runs
# make lint                                   style, types, and whether the pages made from the code are up to date
# PIP_FLAGS is passed to pip, for a build of torch of your choice; PYTHON names the interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
PHOTOS ?=
QUERY ?=

.PHONY: demo test quick long lint clean
.DEFAULT_GOAL := demo

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	touch $@

ifeq ($(strip $(PHOTOS)),)
demo: $(VENV)/.ready
	$(BIN)/seenit demo $(DEMO)
	$(BIN)/seenit index $(DEMO)/photos
	$(BIN)/seenit search $(DEMO)/queries --batch --top 6 --index $(DEMO)/photos/.seenit --html $(DEMO)/results.html
	@echo "open $(DEMO)/results.html in a browser"
else
demo: $(VENV)/.ready
	$(BIN)/seenit index "$(PHOTOS)"
	$(if $(strip $(QUERY)),$(BIN)/seenit search "$(QUERY)" --index "$(PHOTOS)/.seenit" --html results.html,@echo "now: $(BIN)/seenit search PHOTO.jpg --html results.html")
	$(if $(strip $(QUERY)),@echo "open results.html in a browser")
endif

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not long"

quick: $(VENV)/.ready
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not long"

long: $(VENV)/.ready
	$(BIN)/python -m pytest -n auto --dist worksteal -m long

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/make_pages.py --check

clean:
	rm -rf $(VENV) demo build dist *.egg-info
