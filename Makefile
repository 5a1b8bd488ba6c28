# Two commands do everything on a fresh machine with Python >= 3.11, make and git:
#   make demo    sets up .venv and runs the main job on the text that every Python carries
#   make test    sets up .venv and runs the whole suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test lint types peers prove-resume prove-save prove-export prove-overload prove-streams bench clean

help:
	@grep -E '^[a-z-]+:.*#' Makefile | sed 's/:.*#/ — /'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Inkstone needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all]' --requirement requirements-dev.txt
	@touch $(STAMP)

setup: $(STAMP) # make .venv with everything in it

demo: $(STAMP) # the main job on the embedded text
	$(BIN)/inkstone demo

test: $(STAMP) # the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests

lint: $(STAMP) # ruff
	$(BIN)/ruff check inkstone tests benchmarks
	$(BIN)/ruff format --check inkstone tests benchmarks

types: $(STAMP) # mypy
	$(BIN)/mypy

prove-resume: $(STAMP) # 200 random kills, each resumed run equal to the unbroken one to the bit
	$(BIN)/python -m benchmarks.prove_resume --kills 200

prove-save: $(STAMP) # every system call of a save killed, then failed with ENOSPC and EIO
	$(BIN)/python -m benchmarks.prove_save

prove-export: $(STAMP) # what llama.cpp, ONNX Runtime and CTranslate2 make of exported models
	$(BIN)/python -m benchmarks.prove_export

prove-overload: $(STAMP) # ten times what the server can answer for two minutes, on a machine at rest
	$(BIN)/python -m benchmarks.prove_overload

prove-streams: $(STAMP) # 10,000 streams with random cancels: none lost, doubled or crossed
	$(BIN)/python -m benchmarks.prove_streams

peers: $(STAMP) # programs that benchmarks compare with and that are compiled here, minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement requirements-peers.txt

bench: $(STAMP) # every benchmark, hours
	$(BIN)/python -m benchmarks.gpt2_step
	$(BIN)/python -m benchmarks.shakespeare
	$(BIN)/python -m benchmarks.preparation
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.wikitext2
	$(BIN)/python -m benchmarks.classical
	$(BIN)/python -m benchmarks.word_vectors
	$(BIN)/python -m benchmarks.families
	$(BIN)/python -m benchmarks.bert_base
	$(BIN)/python -m benchmarks.retrieval

clean: # remove .venv and caches (runs are kept)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
