# Everything a newcomer types. Each target makes its own environment in .venv first, once.
#
#   PYTHON   the interpreter that .venv is made with: make test PYTHON=python3.12
#   DEMO_GPU what --gpu of the demo is: 0, 0,1 or cpu; left out, a GPU is used where there is one

PYTHON ?= python3
DEMO_GPU ?=

VENV := .venv
PY := $(VENV)/bin/python
DEMO := demo_out

# A stamp is written when pip has finished, and removed before it starts: an environment without a stamp was
# interrupted half-way, and is made again from nothing.
RUNTIME := $(VENV)/.complete-runtime
DEVELOPMENT := $(VENV)/.complete-development

# A .venv whose interpreter is gone (Python upgraded or removed) is half-made too.
ifneq ($(wildcard $(VENV)/.complete-*),)
ifneq ($(shell $(PY) -c 'print("runs")' 2>/dev/null),runs)
$(shell rm -f $(RUNTIME) $(DEVELOPMENT))
endif
endif

# Waiting threads sleep instead of spinning: small machines are several times faster for it.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

GPU_OPTION = $(if $(DEMO_GPU),--gpu=$(DEMO_GPU))

.PHONY: help demo test lint fmt clean
.NOTPARALLEL:

help:
	@echo "make demo    draw tissue, train on it, segment it and score it: minutes on a CPU, results in $(DEMO)/"
	@echo "make test    run the tests"
	@echo "make lint    ruff, mypy and the layers"
	@echo "make fmt     put the code in order"
	@echo "make clean   remove $(DEMO)/ and caches; the environment stays (rm -rf $(VENV) removes it)"

# The demo starts afresh each time, so that what it shows was made by the code that is here now: a resumed run would
# mix two versions, and drawn data of another version is refused.
demo: $(RUNTIME)
	@if [ -e $(DEMO) ]; then echo "Removing $(DEMO)/ of the last demo."; rm -rf $(DEMO); fi
	$(PY) run_train.py --recipe=demo --data_dir=$(DEMO)/data --log_dir=$(DEMO)/run $(GPU_OPTION)
	$(PY) run_infer.py $(GPU_OPTION) --model_path=$(DEMO)/run/net.tar tile \
		--input_dir=$(DEMO)/data/test/images --output_dir=$(DEMO)/pred
	$(PY) run_eval.py --pred_dir=$(DEMO)/pred --true_dir=$(DEMO)/data/test/labels --out=$(DEMO)/scores.json
	@echo
	@echo "Look at:"
	@echo "  $(DEMO)/pred/overlay/             the test images with each nucleus outlined"
	@echo "  $(DEMO)/run/report.html           what the network learnt from, what came of it and why"
	@echo "  $(DEMO)/run/cycle_*/gallery.png   what each cycle saw, believed and learnt"
	@echo "  $(DEMO)/scores.json               the table above; the network learnt without any drawn mask"

test: $(DEVELOPMENT)
	$(PY) -m pytest -n auto --maxprocesses=4

# The console script is handed to the interpreter, so that it also runs where the checkout was moved.
lint: $(DEVELOPMENT)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) $(VENV)/bin/lint-imports --no-logo

fmt: $(DEVELOPMENT)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(DEMO) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(RUNTIME): requirements.txt
	$(call install,requirements.txt)
	@touch $(RUNTIME)

# requirements-dev.txt holds requirements.txt, so this completes both.
$(DEVELOPMENT): requirements.txt requirements-dev.txt
	$(call install,requirements-dev.txt)
	@touch $(RUNTIME) $(DEVELOPMENT)

define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ": give make PYTHON=<a newer one>.")'
@echo "Setting up $(VENV) from $(1): the first time takes minutes, most of it for torch."
@[ -n "$$(ls $(VENV)/.complete-* 2>/dev/null)" ] || $(PYTHON) -m venv --clear $(VENV)
@rm -f $(RUNTIME) $(DEVELOPMENT)
@$(PY) -m pip install --quiet --quiet -r $(1)
endef
