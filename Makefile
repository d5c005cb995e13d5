# `make` builds .venv, once (tools/setup.sh), and lists what there is. What needs .venv builds it too.

# The demo: every step is small, and all of them together take about a quarter of an hour on 2 cores.
DEMO_01 := ROLLOUTS=500
DEMO_02 := EPOCHS=8 FRAMES_PER_EPOCH=15000 LEARNING_RATE_DECAY=0.8
DEMO_03 :=
DEMO_04 := EPOCHS=6 FRAMES_PER_EPOCH=200000 LEARNING_RATE_DECAY=0.7
DEMO_05 := FEATURES=z COMPONENTS=12 WHITEN=True POPULATION=16 MAX_IDLE_STEPS=50 GENERATIONS=20
# The first search has 39 numbers to find. The second one starts where it ended: h too, and smaller steps.
DEMO_FINER := INIT_FROM=controller SIGMA=0.05 COMPONENTS=15 WHITEN=True POPULATION=24 MAX_IDLE_STEPS=50 AVERAGE=3 GENERATIONS=16
DEMO_06 := EPISODES=10 BASELINE_EPISODES=2
# It has folders of its own and never overwrites your weights.
DEMO = DATA=data/demo MODELS=models/demo $(if $(filter-out 1,$(SEED)),SEED=$(SEED))

# `make demo SEED=2` and `make train SEED=2` do the same with other random numbers.
SEED := 1

PY := .venv/bin/python

# Nothing is written in the home folder, which may be missing or read-only.
export MPLCONFIGDIR := $(CURDIR)/.venv/matplotlib
export KERAS_HOME := $(CURDIR)/.venv/keras
export PYTHONUNBUFFERED := 1
unexport PYTHONHOME PYTHONPATH PYTHONSAFEPATH

.PHONY: all help setup cluster demo train dream test bench chaos lint clean clean-trained

all: setup help

help:
	@echo '.venv/bin/python 06_visualise.py   shows the shipped agent driving: start here'
	@echo 'make demo    the whole tutorial, small: trains an agent in about a quarter of an hour and shows it driving'
	@echo 'make train   every step at tutorial scale: two hours or more'
	@echo 'make dream   a page to drive in the dream, made from your own weights or the shipped ones, and served to your browser'
	@echo 'make test    the tests'
	@echo 'make bench   how fast each part is here'
	@echo 'make chaos   what happens when a run is killed, the disk is full, a file is broken'
	@echo 'make lint    ruff, and mypy on models/ and pipeline/'
	@echo 'make setup   only builds .venv; the others build it too where it is missing (PYTHON=python3.13 chooses one)'
	@echo 'make cluster adds Ray to .venv, to work on more than one machine (docs/cluster.md)'
	@echo 'make clean   removes .venv and caches; keeps data and trained weights'
	@echo 'make clean-trained   removes data/ and your weights in models/, and lists them; keeps models/trained/'

setup:
	@sh tools/setup.sh

cluster: setup
	@$(PY) -m pip install -q -r requirements-cluster.txt

# Starts from nothing each time: M and C of an earlier demo do not fit a newly trained V.
demo: setup
	@rm -rf data/demo models/demo
	$(PY) 01_generate_data.py $(DEMO) $(DEMO_01)
	$(PY) 02_train_vae.py $(DEMO) $(DEMO_02)
	$(PY) 03_series.py $(DEMO) $(DEMO_03)
	$(PY) 04_train_rnn.py $(DEMO) $(DEMO_04)
	$(PY) 05_train_controller.py $(DEMO) $(DEMO_05)
	$(PY) 05_train_controller.py $(DEMO:data/demo=data/demo/finer) $(DEMO_FINER)
	$(PY) 06_visualise.py DATA=data/demo MODELS=models/demo $(DEMO_06)
	@echo; echo 'The demo made:'; find data/demo -name '*.gif' -o -name '*.mp4' -o -name '*.png' | sort | sed 's/^/  /'

# All steps at tutorial scale. A first C, which sees z alone, learns on the real track. Then it drives on 400 new tracks
# with noise on its actions, and M is trained further with these rollouts. Three times a dream controller learns in M's
# dream and drives too, so M sees how the drives end that it dreamed of. These dream controllers see z alone: they are
# fooled most. C goes on from the first one, with h too, in two searches. Last, a new dream controller,
# which sees h too, learns in this M's dream.
# A finished step leaves a mark in data/train: run the command again to continue. Everything is also written to
# data/train/log. A SEED other than 1 has folders of its own.
DATA := data$(if $(filter-out 1,$(SEED)),/seed-$(SEED))
MODELS := models$(if $(filter-out 1,$(SEED)),/seed-$(SEED))
MARKS := $(DATA)/train
# $(call step,name,script and constants,DATA where it is another folder)
step = @test -e $(MARKS)/$(1) || { mkdir -p $(MARKS) && { echo "== $$(date '+%F %T') $(1)" && \
	$(PY) $(2) DATA=$(or $(3),$(DATA)) MODELS=$(MODELS) && touch $(MARKS)/$(1); } 2>&1 | tee -ai $(MARKS)/log; \
	test -e $(MARKS)/$(1); }
DRIVE := POLICY=controller ROLLOUTS=400 MAX_STEPS=600
FURTHER := FINE_TUNE=True EPOCHS=12 LEARNING_RATE=0.001 LEARNING_RATE_DECAY=0.8
# For a controller that drives already: smaller steps, the average of the last means, because a single mean wanders, and
# half of the tracks are ones with low returns. At the end still smaller steps, and twice as many tracks.
SMALL_STEPS := WHITEN=True COMPONENTS=30 POPULATION=24 AVERAGE=10 EVAL_EPISODES=100
FINE := SIGMA=0.04 EPISODES=6 HARD_TRACKS=3 GENERATIONS=40
FINEST := SIGMA=0.02 EPISODES=12 HARD_TRACKS=6 GENERATIONS=40

# $(call further,name,first rollout,controller that drives)
define further
	$(call step,$(1)-01,01_generate_data.py SEED=$(SEED) FIRST_ROLLOUT=$(2) $(DRIVE) CONTROLLER=$(3))
	$(call step,$(1)-03,03_series.py SEED=$(SEED))
	$(call step,$(1)-04,04_train_rnn.py SEED=$(SEED) $(FURTHER))
endef

# $(call dream_round,name,first rollout)
define dream_round
	$(call step,$(1)-07,07_dream_train.py SEED=$(SEED) FEATURES=z COMPONENTS=12,$(DATA)/$(1))
	$(call further,$(1),$(2),dream_controller)
endef

train: setup
	$(call step,01,01_generate_data.py SEED=$(SEED))
	$(call step,02,02_train_vae.py SEED=$(SEED))
	$(call step,03,03_series.py SEED=$(SEED))
	$(call step,04,04_train_rnn.py SEED=$(SEED))
	$(call step,05-z,05_train_controller.py SEED=$(SEED) FEATURES=z GENERATIONS=40,$(DATA)/z)
	$(call further,real,10000,controller)
	$(call dream_round,dream-1,20000)
	$(call dream_round,dream-2,30000)
	$(call dream_round,dream-3,40000)
	$(call step,05-fine,05_train_controller.py SEED=$(SEED) INIT_FROM=controller $(SMALL_STEPS) $(FINE),$(DATA)/fine)
	$(call step,05,05_train_controller.py SEED=$(SEED) INIT_FROM=controller $(SMALL_STEPS) $(FINEST))
	$(call step,07,07_dream_train.py SEED=$(SEED) TEMPERATURE=1.3)
	$(call step,06,06_visualise.py)

dream: setup
	@$(PY) -m tools.export_dream
	@$(PY) -m tools.serve_dream

test: setup
	@$(PY) -m pytest

bench: setup
	@$(PY) -m tools.bench

chaos: setup
	@$(PY) -m tools.chaos

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

clean:
	@rm -rf .venv .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Hours of training. models/trained/ came with the clone and stays.
TRAINED := data/* data/.[!.]* models/demo models/seed-* models/*.h5 models/*.npz models/.[!.]*
clean-trained:
	@for path in $(TRAINED); do test ! -e "$$path" || { echo "removing $$path" && rm -rf "$$path"; }; done
