"""Step 8 of the tutorial: evolve C, the controller, on the real track.

Reads models/vae.weights.h5, models/rnn.weights.h5 and models/dream_starts.npz, and the controller that START names.
Writes models/controller.weights.h5 (the best so far), data/controller.npz (the history, from which a run that was
stopped goes on) and data/controller.png (the curve).

CMA-ES draws POPULATION controllers of 867 numbers each around its mean; all of them drive the same TRACKS tracks; the
better half moves the mean and shapes the spread that the next ones are drawn with. No gradients anywhere. The 288
numbers that C sees vary together, in a few directions: once C drives, moving it along the first 20 or 30 of them
(COMPONENTS, WHITENED), 63 or 93 numbers instead of 867, finds the rest sooner.
Takes 1½ hours for 200 generations on 2 cores; there is an agent that drives after 10 minutes.
"""

import os
from pathlib import Path
from typing import Literal

from pipeline import script
from pipeline.script import NonNegativeInt, PossiblyEmpty
from pipeline.workers import worker_pool

GENERATIONS = 200  # tutorial 200; paper 1,800
POPULATION = 32  # controllers a generation (tutorial 32; paper 64)
TRACKS = 4  # that each of them drives, the same for all (tutorial 4 episodes; paper 16)
REPLAYED: NonNegativeInt = 0  # of them, so many are earlier ones that went badly; half of them once C drives well
SIGMA = 0.1  # how far the first ones are spread around the start; 0.04 once C drives
DIAGONAL = False  # True: learn a variance for each number instead of a full covariance matrix
COMPONENTS = 288  # principal components of what C sees that the search moves along; 288: all of them
WHITENED = False  # True: steps along all of them matter alike; slower from zero, finer later
FEATURES: Literal["zh", "z"] = "zh"  # what C sees: "zh" is z and h, "z" is V alone (paper: 906 with h, 632 without)
PATIENCE: NonNegativeInt = (
    100  # a car that finds no new tile for so many frames is stopped, as if it then stood still; 0: never
)
EVAL_EVERY = 10  # generations from one score of the mean on the selection tracks to the next (tutorial 25)
EVAL_TRACKS = 32  # of the 100 selection tracks (tutorial 100)
START: Literal["zero", "controller", "dream_controller"] = (
    "zero"  # or "dream_controller", "controller": go on from that one in MODELS, with the M of today
)
SEED: NonNegativeInt = 1  # of the search and of the tracks it drives on
CARS = 32  # driven in lockstep by each worker: the batch that V and M see
CLUSTER: PossiblyEmpty = ""  # a Ray cluster to work on, "auto" or "host:port" (docs/cluster.md); "": this machine
WORKERS: NonNegativeInt = os.cpu_count()  # processes; on a cluster actors, 0: one for each of its CPUs
MODELS = "models"
DATA = "data"


def main() -> None:
    """Evolve C in the real world."""
    from models import evolution

    evolution.check(globals())
    from models import worlds

    vae, rnn = worlds.load_models(MODELS)
    starts = worlds.load_starts(MODELS, vae)
    origin = worlds.fingerprints(vae, rnn)
    names = ("POPULATION", "TRACKS", "REPLAYED", "SIGMA", "DIAGONAL", "COMPONENTS", "WHITENED", "FEATURES", "PATIENCE")
    names += ("START", "SEED", "CARS")
    constants = {name: globals()[name] for name in names} | {"SCRIPT": Path(__file__).name}
    with worker_pool(CLUSTER, WORKERS, worlds.prepare_real, worlds.get_weights(vae, rnn), CARS, PATIENCE) as workers:
        evolution.evolve(
            workers,
            ("real",),
            constants,
            origin,
            worlds.directions(rnn, starts, FEATURES, COMPONENTS, WHITENED),
            generations=GENERATIONS,
            eval_every=EVAL_EVERY,
            eval_tracks=EVAL_TRACKS,
            history=Path(DATA) / "controller.npz",
            best=Path(MODELS) / "controller.weights.h5",
        )


if __name__ == "__main__":
    script.run(main, globals())
