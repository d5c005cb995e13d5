"""Step 10 of the tutorial: evolve C inside M's own dream, then see how it drives the real car.

Reads models/vae.weights.h5, models/rnn.weights.h5 and models/dream_starts.npz, and the controller that START names.
Writes models/dream_controller.weights.h5 (the best so far in the dream), data/dream_controller.npz (the history, from
which a run that was stopped goes on) and data/dream_controller.png (the return in the dream and on the real track).

The same search as in 05, only that the population drives in another world: M foretells what comes next, the reward and
the end, and no frame of the game is drawn. The real score is watched and never used: not by the search, nor to choose
which controller is kept. Takes 2 minutes on 2 cores.
"""

import os
from pathlib import Path
from typing import Literal

from pipeline import script
from pipeline.script import NonNegativeInt, PossiblyEmpty
from pipeline.workers import worker_pool

GENERATIONS = 60  # tutorial 200; here more of them learn what is wrong with the dream
POPULATION = 32  # controllers a generation
TRACKS = 8  # dreams that each of them drives, the same for all
REPLAYED: NonNegativeInt = 4  # of them, so many are earlier ones that went badly
FRAMES = 600  # of a dream, at most: M's dreams get stranger the longer they last
TEMPERATURE = 1.0  # of the dream: above 1 it is less certain, and harder to cheat (paper, section 4.3: 1.15 for Doom)
SIGMA = 0.1  # how far the first ones are spread around the start; finer steps learn what is wrong with the dream
DIAGONAL = False  # True: learn a variance for each number instead of a full covariance matrix
COMPONENTS = 20  # principal components of what C sees that the search moves along; 288: all of them
WHITENED = True  # True: steps along all of them matter alike
FEATURES: Literal["zh", "z"] = "zh"  # what C sees: "zh" is z and h, "z" is z alone
PATIENCE: NonNegativeInt = (
    100  # on the real track, a car that finds no new tile for so many frames is stopped; 0: never
)
EVAL_EVERY = 20  # generations from one score of the mean, in the dream and on the selection tracks, to the next
EVAL_TRACKS = 16  # of the 100 selection tracks, and as many dreams
START: Literal["zero", "controller", "dream_controller"] = (
    "zero"  # or "dream_controller", "controller": go on from that one in MODELS, with the M of today
)
SEED: NonNegativeInt = 1  # of the search and of the dreams
DREAMS = 256  # dreamt in lockstep by each worker
CARS = 32  # driven in lockstep by each worker on the real track
CLUSTER: PossiblyEmpty = ""  # a Ray cluster to work on, "auto" or "host:port" (docs/cluster.md); "": this machine
WORKERS: NonNegativeInt = os.cpu_count()  # processes; on a cluster actors, 0: one for each of its CPUs
MODELS = "models"
DATA = "data"


def main() -> None:
    """Evolve C in the dream."""
    from models import evolution

    evolution.check(globals())
    from models import weights, worlds

    vae, rnn = worlds.load_models(MODELS)
    starts = worlds.load_starts(MODELS, vae)
    origin = worlds.fingerprints(vae, rnn)
    names = ("POPULATION", "TRACKS", "REPLAYED", "FRAMES", "TEMPERATURE", "SIGMA", "DIAGONAL", "COMPONENTS", "WHITENED")
    names += ("FEATURES", "PATIENCE", "START", "SEED", "DREAMS", "CARS")
    constants = {name: globals()[name] for name in names} | {"SCRIPT": Path(__file__).name}
    constants["the starts"] = weights.fingerprint((starts["mu"], starts["action"]))
    prepare = worlds.prepare_dream, worlds.get_weights(vae, rnn), starts, DREAMS, TEMPERATURE, FRAMES, CARS, PATIENCE
    with worker_pool(CLUSTER, WORKERS, *prepare) as workers:
        evolution.evolve(
            workers,
            ("dream", "real"),
            constants,
            origin,
            worlds.directions(rnn, starts, FEATURES, COMPONENTS, WHITENED),
            generations=GENERATIONS,
            eval_every=EVAL_EVERY,
            eval_tracks=EVAL_TRACKS,
            history=Path(DATA) / "dream_controller.npz",
            best=Path(MODELS) / "dream_controller.weights.h5",
        )


if __name__ == "__main__":
    script.run(main, globals())
