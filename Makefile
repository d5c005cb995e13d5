# `make` builds .venv, once (tools/setup.sh), and lists what there is. What needs .venv builds it too.

# The demo: every step small enough that all of it takes a quarter of an hour on 2 cores.
DEMO_01 := ROLLOUTS=500
DEMO_02 := EPOCHS=8 FRAMES_PER_EPOCH=15000 LEARNING_RATE_DECAY=0.8
DEMO_03 :=
DEMO_04 := EPOCHS=6 FRAMES_PER_EPOCH=200000 LEARNING_RATE_DECAY=0.7
DEMO_05 := GENERATIONS=20 EVAL_TRACKS=16
DEMO_06 := EPISODES=10 YARDSTICKS=2
# It has folders of its own: trained weights are never written over.
DEMO := DATA=data/demo MODELS=models/demo

PY := .venv/bin/python

# Nothing is written in the home folder, which may be missing or read-only.
export MPLCONFIGDIR := $(CURDIR)/.venv/matplotlib
export KERAS_HOME := $(CURDIR)/.venv/keras
export PYTHONUNBUFFERED := 1
unexport PYTHONHOME PYTHONPATH

.PHONY: all help setup demo train dream test bench chaos lint clean

all: setup help

help:
	@echo 'make demo    the whole tutorial, small: trains an agent in a quarter of an hour and shows it driving'
	@echo 'make train   every step at tutorial scale: two to three hours'
	@echo 'make dream   a page to drive in the dream, made from your own weights or the shipped ones, and served to your browser'
	@echo 'make test    the tests'
	@echo 'make bench   how fast each part is here'
	@echo 'make chaos   what happens when a run is killed, the disk is full, a file is broken'
	@echo 'make lint    ruff'
	@echo 'make setup   only builds .venv; all others do that too where it is missing (PYTHON=python3.13 chooses one)'
	@echo 'make clean   removes .venv and all that was generated: data, trained weights, caches; spares what git tracks'

setup:
	@sh tools/setup.sh

# From nothing each time: a V trained anew makes the M and C of an earlier demo worthless.
demo: setup
	@rm -rf data/demo models/demo
	$(PY) 01_generate_data.py $(DEMO) $(DEMO_01)
	$(PY) 02_train_vae.py $(DEMO) $(DEMO_02)
	$(PY) 03_series.py $(DEMO) $(DEMO_03)
	$(PY) 04_train_rnn.py $(DEMO) $(DEMO_04)
	$(PY) 05_train_controller.py $(DEMO) $(DEMO_05)
	$(PY) 06_visualise.py $(DEMO) $(DEMO_06)
	@echo; echo 'The demo made:'; find data/demo -name '*.gif' -o -name '*.mp4' -o -name '*.png' | sort | sed 's/^/  /'

# All steps at tutorial scale, the dream first. Twice who has learned in M's dream drives on 400 new tracks, with noise on
# its actions, and M learns on from where that led. Only then does C learn on the real track, from the last dreamer on.
# A step that is done leaves a mark in data/train: the same command goes on where it was stopped.
once = @test -e data/train/$(1) || { echo '== $(1): $(2)'; $(PY) $(2) && mkdir -p data/train && touch data/train/$(1); }
DRIVE := POLICY=controller CONTROLLER=dream_controller ROLLOUTS=400 STEPS=600
LEARN_ON := GO_ON=True EPOCHS=12 LEARNING_RATE=0.001 LEARNING_RATE_DECAY=0.8
# For who drives already: smaller steps, and half of the tracks ones that went badly.
FINER := SIGMA=0.04 WHITENED=True COMPONENTS=30 POPULATION=24 TRACKS=6 REPLAYED=3 EVAL_TRACKS=100

train: setup
	$(call once,01,01_generate_data.py)
	$(call once,02,02_train_vae.py)
	$(call once,03,03_series.py)
	$(call once,04,04_train_rnn.py)
	$(call once,round-1-07,07_dream_train.py DATA=data/round-1)
	$(call once,round-1-01,01_generate_data.py FIRST=10000 $(DRIVE))
	$(call once,round-1-03,03_series.py)
	$(call once,round-1-04,04_train_rnn.py $(LEARN_ON))
	$(call once,round-2-07,07_dream_train.py DATA=data/round-2)
	$(call once,round-2-01,01_generate_data.py FIRST=20000 $(DRIVE))
	$(call once,round-2-03,03_series.py)
	$(call once,round-2-04,04_train_rnn.py $(LEARN_ON))
	$(call once,07,07_dream_train.py)
	$(call once,05,05_train_controller.py START=dream_controller $(FINER) GENERATIONS=110)
	$(PY) 06_visualise.py

dream: setup
	@$(PY) -m tools.export_dream
	@$(PY) -m tools.serve_dream

test: setup
	@$(PY) -m pytest

bench: setup
	@$(PY) -m tests.bench

chaos: setup
	@$(PY) -m tests.chaos

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

# Not under git (an unpacked archive): only models/trained/ and data/readme/ came with it.
clean:
	@if test -e .git; then git clean -fdXq -- data models; \
	else find data models -mindepth 1 -maxdepth 1 \
	  \( -path 'data/*' ! -name readme -o -name '*.h5' -o -name '*.npz' -o -name '.*' \) -exec rm -rf {} +; fi
	@rm -rf data/demo models/demo .venv .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
