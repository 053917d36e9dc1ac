# make lab     open the chapters in JupyterLab        make chapter N=04   run one, save its outputs
# make test    run everything that can fail           make lint           style, types, density
# make bench   measure ratios against other libraries make clean          remove .venv
# make site    build the book into build/site         make site-test      look at it in Chromium

PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
LOCK ?= requirements.lock
READY := .venv/ready

export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE

# the accessibility checker that site-test puts into the pages
AXE := .venv/axe/node_modules/axe-core/axe.min.js

.PHONY: lab test chapter lint bench site site-test clean

lab: $(READY)
	$(BIN)/python -m dlcourse.doctor
	$(BIN)/jupyter lab --notebook-dir=chapters $(ARGS)

test: $(READY)
	DLCOURSE_PROGRESS=0 $(BIN)/python -m pytest --nbval -n 2 --dist loadfile \
	  -q $(ARGS) chapters tests dlcourse

chapter: $(READY)
	DLCOURSE_PROGRESS=0 $(BIN)/python tools/chapter.py $(N)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python tools/density.py

bench: $(READY)
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/many_seeds.py
	$(BIN)/python benchmarks/fit_overhead.py
	$(BIN)/python benchmarks/augmentation.py
	$(BIN)/python benchmarks/data_loading.py
	$(BIN)/python benchmarks/digits_svc.py
	$(BIN)/python benchmarks/chapters.py

site: $(READY)
	$(BIN)/python docs/build.py $(ARGS)

site-test: site $(AXE)
	$(BIN)/python -m pytest -n 2 -q tests/book/site_in_chromium.py

$(AXE): $(READY)
	npm install --silent --no-audit --no-fund --prefix .venv/axe axe-core@4.14.1

$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	$(BIN)/python -c "open('.venv/ready', 'w').close()"

clean:
	rm -rf .venv
