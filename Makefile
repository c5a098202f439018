# Everything happens in .venv: nothing is installed or set outside this folder.
# Each target is a short name for a command of .venv/bin/gdn-lab (see gdn-lab --help) or of a development tool.
#   PYTHON=python3.12   the Python that makes .venv (3.12, or 3.11.2 or newer of 3.11)
#   ARGS="..."          passed on: make run ARGS="-p seed 1", make test ARGS="-k pool", make lab ARGS="--no-browser"
#   CAPTURE=file        a trace of Nsight Systems or Kineto, for profile and capture-scrub
#   STUDY=serving GPUS=2  of make record
#   KERNEL=my_kernel.py  of make bench, make check and make judge: kernels of your own in one file
#   SECONDS=600 SEED=0  of make fuzz; CASE=calls:123 repeats one case

PYTHON ?= python3
PYTHONS ?= python3.11 python3.12
ARGS ?=
CAPTURE ?=
OUT ?=
SECONDS ?= 600
SEED ?= 0
CASE ?=
STUDY ?=
GPUS ?=
KERNEL ?=
# What a user gives is taken as it stands: make expands no $ in it, and names reach the shell as variables.
override PYTHON := $(value PYTHON)
override ARGS := $(value ARGS)
override CAPTURE := $(value CAPTURE)
override OUT := $(value OUT)
override SECONDS := $(value SECONDS)
override SEED := $(value SEED)
override CASE := $(value CASE)
override STUDY := $(value STUDY)
override GPUS := $(value GPUS)
override KERNEL := $(value KERNEL)
export PYTHON CAPTURE OUT SECONDS SEED CASE STUDY GPUS KERNEL
VENV := .venv
IN_VENV := $(VENV)/bin/python
GDN_LAB := $(VENV)/bin/gdn-lab
PIP := $(IN_VENV) -m pip install -q --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.ready
# Lies in .venv while it is being filled: one that still has it was interrupted, and is made anew.
FILLING := $(VENV)/.filling
# How nvidia-smi says that the driver serves CUDA 13 or newer.
CUDA13 := 'CUDA [A-Za-z ]*Version *: *(1[3-9]|[2-9][0-9])'

.DEFAULT_GOAL := help
.PHONY: help run record sweep serve advise bench check judge profile lab compare board list backends site report capture-scrub test test-all test-gpu test-gpu-together test-gpu-alone test-pages fuzz mutants sanitize lint constraints clean train

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
		printf '  %-18s %s\n' "$$target" "$$text"; done

run: $(READY)  ## set up, then run every notebook: pages, figures and rows in runs/
	@$(GDN_LAB) run $(ARGS)

record: $(READY)  ## all that is kept of this GPU, or STUDY=serving on GPUS (1), within nine minutes; again: goes on
	@$(GDN_LAB) record $${STUDY:+"$$STUDY"} $${GPUS:+--gpus "$$GPUS"} $(ARGS)

sweep: $(READY)  ## a grid of jobs on all GPUs that Ray reaches: ARGS="--study 02 --over tp=1,2 --over model=all"
	@$(IN_VENV) -c 'import ray, pyarrow' 2> /dev/null || $(PIP) -r requirements-cluster.txt
	@$(GDN_LAB) sweep $(ARGS)

serve: $(READY)  ## serve requests with a whole model: tokens/s, TPOT, ITL, TTFT [ARGS="--toy"]
	@$(GDN_LAB) serve $(ARGS)

train: $(READY)  ## train the small model of notebook 11 anew, in four minutes on a GPU [ARGS="--seed 1"]
	@$(GDN_LAB) train $(ARGS)

advise: $(READY)  ## which backend for a model: ARGS="--model qwen3-next-80b-a3b --tp 4 --batch 96"
	@$(GDN_LAB) advise $(ARGS)

bench: $(READY)  ## run the decode benchmark alone (notebook 02) [KERNEL=my_kernel.py]
	@$(GDN_LAB) run 02 $${KERNEL:+--kernel "$$KERNEL"} $(ARGS)

check: $(READY)  ## is a decode kernel right? KERNEL=my_kernel.py, or a variant: ARGS="triton/vk"
	@$(GDN_LAB) check $${KERNEL:+"$$KERNEL"} $(ARGS)

judge: $(READY)  ## is a kernel correct, is it faster, what limits it? KERNEL=my_kernel.py; text, a page and JSON
	@$(GDN_LAB) judge $${KERNEL:+"$$KERNEL"} $(ARGS)

profile: $(READY)  ## record a decode step (notebook 03) and attribute its time (04); or open the trace CAPTURE=file
	@$(GDN_LAB) profile $${CAPTURE:+"$$CAPTURE"} $(ARGS)

lab: $(READY)  ## open the notebooks in JupyterLab, at 00_start_here
	@$(GDN_LAB) lab $(ARGS)

compare: $(READY)  ## two runs, folders or recorded GPUs: settings and times that differ; ARGS="h100 h200"
	@$(GDN_LAB) compare $(ARGS)

board: $(READY)  ## the best right decode kernel for each GPU, dtype and batch, from data/ and runs/ [ARGS="--gpu h100"]
	@$(GDN_LAB) board $(ARGS)

list: $(READY)  ## list the notebooks and their questions; ARGS=02 shows the parameters of one
	@$(GDN_LAB) list $(ARGS)

backends: $(READY)  ## list every kernel, whether it can run here, and why not
	@$(GDN_LAB) backends $(ARGS)

site: $(READY)  ## execute the pages of every recorded GPU for docs/site, on a machine without a GPU [ARGS="h200"]
	@$(GDN_LAB) site $(ARGS)

report: $(READY)  ## rebuild the figures and generated parts of README.md and docs/ from data/
	@$(GDN_LAB) report $(ARGS)

capture-scrub: $(READY)  ## copy the trace CAPTURE=file without its private data [OUT=file]
	@$(GDN_LAB) scrub "$$CAPTURE" $${OUT:+"$$OUT"}

test: $(READY)  ## set up, then run the tests that need no GPU
	@$(IN_VENV) -m pytest -m "not gpu and not browser and not exhaustive" -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-all: $(READY)  ## those, and every kernel compiled at every size, which takes minutes more
	@$(IN_VENV) -m pytest -m "not gpu and not browser" -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-gpu: $(READY)  ## the tests on an NVIDIA GPU; one that skips there has failed
	@$(MAKE) --no-print-directory test-gpu-together
	@$(MAKE) --no-print-directory test-gpu-alone

test-gpu-together: $(READY)  ## of these, the ones that may run side by side
	@$(IN_VENV) -m pytest -m "gpu and not alone" --no-skips -n auto --maxprocesses 12 $(ARGS) || [ $$? -eq 5 ]

test-gpu-alone: $(READY)  ## of these, the ones that time the host, record a profile or fill the GPU's memory
	@$(IN_VENV) -m pytest -m "gpu and alone" --no-skips $(ARGS) || [ $$? -eq 5 ]

test-pages: $(READY)  ## open every page in headless Chromium (Debian, Ubuntu: apt install chromium)
	@$(IN_VENV) -c 'import playwright' 2> /dev/null || $(PIP) -r requirements-browser.txt
	@$(IN_VENV) -m pytest -m browser $(ARGS)

fuzz: $(READY)  ## random calls, signals and damaged traces for SECONDS (600) from SEED (0); CASE=calls:123 repeats one
	@PYTHONPATH=tests $(IN_VENV) -m fuzz --seconds "$$SECONDS" --seed "$$SEED" $${CASE:+--case "$$CASE"} $(ARGS)

mutants: $(READY)  ## make the code wrong in a hundred places, one after the other: do the tests notice? [ARGS="--only pool"]
	@PYTHONPATH=tests $(IN_VENV) -m mutants $(ARGS)

# sanitize-TOOL-GROUP is one process and one log, so the groups run alone or in parallel; `gdn-lab smoke --list` names
# them. It fails if TOOL reports an error, or a result is not the reference's. Warnings, which racecheck has for some
# kernels of FlashInfer, do not fail it.
sanitize: $(READY)  ## compute-sanitizer (memory, races) on one small call of every kernel; logs in runs/sanitize/ [-j 8]
	@groups=$$($(GDN_LAB) smoke --list) && $(MAKE) --no-print-directory \
		$$(for tool in memcheck racecheck; do for group in $$groups; do echo sanitize-$$tool-$$group; done; done)

sanitize-%: $(READY)
	@command -v compute-sanitizer > /dev/null || { \
		echo "There is no compute-sanitizer here; it comes with the CUDA toolkit: install that, or add its bin to PATH"; exit 1; }
	@mkdir -p runs/sanitize; log=runs/sanitize/$*.log; tool=$(firstword $(subst -, ,$*)); \
		PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --report-api-errors no \
			$(IN_VENV) -m gdn_lab smoke $(subst $(firstword $(subst -, ,$*))-,,$*) > $$log 2>&1 \
			&& tail -n 1 $$log | grep -q "[ (]0 errors" && echo "$*: $$(tail -n 1 $$log)" || { tail -n 5 $$log; exit 1; }

lint: $(READY)  ## ruff over code and notebooks
	@$(IN_VENV) -m ruff check . && $(IN_VENV) -m ruff format --check .

# PYTHONS="python3.11 python3.12" names those to resolve for, the oldest first; pip downloads several GB.
constraints: $(READY)  ## resolve requirements*.txt anew and pin all that they bring in constraints.txt
	@$(GDN_LAB) constraints $(PYTHONS)

clean:  ## remove .venv and caches; runs/ is kept
	@rm -rf $(VENV) .jupyter .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find gdn_lab tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} + 2>/dev/null || true

$(READY): requirements.txt requirements-dev.txt requirements-cuda13.txt constraints.txt pyproject.toml
	@command -v "$$PYTHON" > /dev/null || { \
		echo "There is no $$PYTHON here; install Python 3.11.2 or newer, or 3.12, or name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@"$$PYTHON" -c 'import os, sys; v = sys.version_info; sys.exit(None if (3, 11, 2) <= v < (3, 13) else \
		os.environ["PYTHON"] + f" is Python {v[0]}.{v[1]}.{v[2]}; this workbook needs 3.11 from 3.11.2 on, or 3.12. Name one: make PYTHON=python3.12")'
	@"$$PYTHON" -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "$$PYTHON has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@if [ -e $(FILLING) ] || ! $(IN_VENV) -c 'import pip' 2> /dev/null; then rm -rf $(VENV); fi
	@echo "Setting up $(VENV): about 3.5 GB (more with CUDA), two to five minutes the first time."
	@trap 'exit 130' INT TERM; mkdir -p $(VENV); touch $(FILLING); \
	{ [ -e $(IN_VENV) ] || "$$PYTHON" -m venv $(VENV); } \
	&& $(PIP) -r requirements-dev.txt \
	&& if nvidia-smi 2> /dev/null | grep -qE $(CUDA13); then $(PIP) -r requirements-cuda13.txt; fi \
	&& $(PIP) --no-deps --no-build-isolation -e . \
	&& rm $(FILLING) && touch $@ && echo "$(VENV) is ready." \
	|| { rm -f $(FILLING); echo "Setting up $(VENV) failed for the reason above. make tries again; make clean starts anew."; exit 1; }
