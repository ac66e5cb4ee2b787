PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test quick video-processors oldest faults check format clean

run: $(VENV)/.installed  ## open the page on the embedded model and a demo stream
	$(BIN)/python app.py $(ARGS)

# Two at a time, each on one thread; what one file sets up stays with one of them.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/.installed-dev  ## all tests
	$(PYTEST)

quick: $(VENV)/.installed-dev  ## the everyday tests
	$(PYTEST) -m "not slow and not browser"

# Beside the others, not among them: transformers would prefer it, and it does not import beside a CPU-only torch as it is.
TORCHVISION := $(VENV)/torchvision-0.28.0

video-processors: $(VENV)/.installed-dev $(TORCHVISION)  ## pixels against the families' own video processors
	PYTHONPATH=$(TORCHVISION):tests $(BIN)/python -m pytest -p torchvision_names tests/test_video_processors.py

# The oldest release that requirements.txt admits: what reaches into stock models must fit all of them.
OLDEST := $(VENV)/transformers-5.23.0

oldest: $(VENV)/.installed-dev $(OLDEST)  ## the tests of the model side with the oldest transformers
	PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest tests/test_adapter.py tests/test_adapters.py tests/test_exactness.py \
		tests/test_checkpoints_of_the_hub.py tests/test_embedded.py tests/test_families_exact.py tests/test_frame_families.py \
		tests/test_loading.py tests/test_positions.py tests/test_split.py tests/test_steps.py

faults: $(VENV)/.installed-dev  ## what a memory on disk survives: damage, full disks, copies, other formats, kills
	$(BIN)/python -m pytest tests/test_memory_faults.py tests/test_memory_manifest.py tests/test_memory_copies.py \
		tests/test_full_disk.py tests/test_faults_cli.py tests/test_rebuild.py tests/test_crash.py

check: $(VENV)/.installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: requirements.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

$(TORCHVISION) $(OLDEST): $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps --target $@ $(subst -,==,$(notdir $@))

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
