# make lab     open the chapters in JupyterLab        make chapter N=04   run one, save its outputs
# make test    run everything that can fail           make lint           style, types, density
# make bench   measure ratios against other libraries make clean          remove .venv
# make quick   test what you changed
# make site    build the book into build/site         make site-test      look at it in Chromium

PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
LOCK ?= requirements.lock
READY := .venv/ready
# make lab TORCH=cpu leaves the CUDA libraries out; uv is used where it is installed
TORCH ?=
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
SIZE := $(if $(filter cpu,$(TORCH)),about 1.5 GB,about 6 GB)
UV ?= $(shell command -v uv 2>/dev/null)
PIP := $(BIN)/python -m pip install --progress-bar on
# uv first, where there is one; pip where there is none, or where uv finds no index. Like pip
# it compiles what it installs: else each first import of torch takes much longer
install = $(if $(UV),uv pip install --compile-bytecode --python $(BIN)/python $(1) || )$(PIP) $(1)

export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE

# the accessibility checker that site-test puts into the pages
AXE := .venv/axe/node_modules/axe-core/axe.min.js

.PHONY: lab test quick chapter lint bench site site-test clean

lab: $(READY)
	$(BIN)/python -m dlcourse.doctor
	$(BIN)/jupyter lab --notebook-dir=chapters $(ARGS)

# the unit tests of what you changed, and the rules of the house: under a minute
quick: $(READY)
	DLCOURSE_PROGRESS=0 $(BIN)/python tools/quick.py $(ARGS)

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
	@test -w . || { echo "No .venv can be made here: this folder cannot be written to. Copy it to" \
	  "a folder of yours, or follow 'No make' in README.md."; exit 1; }
	@echo "Making .venv with the versions of $(LOCK): $(SIZE), five to ten minutes, once."
	$(if $(UV),uv venv --quiet --seed --python $(PYTHON) .venv || )$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
ifeq ($(TORCH),cpu)
	$(call install,--index-url $(CPU_INDEX) $(shell sed -nE 's/^(torch|torchvision)==([^ ;]*).*/\1==\2/p' $(LOCK)))
	grep -vE "^(torch|torchvision|triton|cuda-|nvidia-)" $(LOCK) > .venv/without-cuda.lock
	$(call install,--no-deps -r .venv/without-cuda.lock)
else
	$(call install,-r $(LOCK))
endif
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --editable .
	$(BIN)/python -c "open('.venv/ready', 'w').close()"

clean:
	rm -rf .venv
