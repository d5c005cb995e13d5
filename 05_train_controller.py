"""Step 8 of the tutorial: evolve C, the controller, on the real track.

Reads   MODELS/vae.weights.h5, rnn.weights.h5 and dream_starts.npz, and the controller that INIT_FROM names
Writes  MODELS/controller.weights.h5 (the best so far of this run), DATA/controller.npz (the history; a run that was
        stopped continues from it), DATA/controller.png (the curve)
Takes   1½ hours for 200 generations on 2 cores; a controller that drives is there after 10 minutes

CMA-ES draws POPULATION controllers of 867 numbers each around its mean. All of them drive the same EPISODES tracks. The
better half moves the mean, and all of them shape the distribution of the next generation. No gradients anywhere.

The 288 numbers that C sees are correlated. Once C drives, a search along their first 20 or 30 principal components
(COMPONENTS, WHITEN), 63 or 93 numbers instead of 867, finds the rest sooner.
"""

from pathlib import Path
from typing import Literal

from pipeline import script
from pipeline.environment import hide_gpu, usable_cores
from pipeline.script import NonNegativeInt, PossiblyEmpty
from pipeline.workers import worker_pool

GENERATIONS = 200  # tutorial 200; paper 1,800
POPULATION = 32  # controllers in a generation (tutorial 32; paper 64)
EPISODES = 4  # that each of them drives, the same tracks for all (tutorial 4; paper 16)
HARD_TRACKS: NonNegativeInt = 0  # how many of EPISODES are recent tracks with low returns (half, once C drives)
SIGMA = 0.1  # initial step size of CMA-ES; 0.03 or 0.04 once C drives
DIAGONAL = False  # True: learn a variance for each number instead of a full covariance matrix
COMPONENTS = 288  # principal components of what C sees that the search moves along; 288: all of them
WHITEN = False  # True: scale the components to equal variance; slower from zero, better later
FEATURES: Literal["zh", "z"] = "zh"  # what C sees: "zh" is z and h, "z" is V alone (paper: 906 with h, 632 without)
MAX_IDLE_STEPS: NonNegativeInt = 100  # steps without a new tile before an episode is stopped; 0: never
EVAL_EVERY = 10  # generations from one evaluation of the mean on the selection tracks to the next (tutorial 25)
EVAL_EPISODES = 32  # episodes in an evaluation, at most 100: the selection tracks (tutorial 100)
AVERAGE = 1  # the last means of the search whose average is evaluated and kept; 10 where the mean wanders
# Where the search starts: zeros, or a controller in MODELS
INIT_FROM: Literal["zero", "dream_controller", "controller"] = "zero"
SEED: NonNegativeInt = 1  # of the search and of its tracks
NUM_ENVS = 32  # cars driven in lockstep by each worker: the batch that V and M see
CLUSTER: PossiblyEmpty = ""  # a Ray cluster to work on, "auto" or "host:port" (docs/cluster.md); "": this machine
WORKERS: NonNegativeInt = usable_cores()  # processes; on a cluster actors, 0: one for each of its CPUs
MODELS = "models"  # the folder of the weights
DATA = "data"  # the folder of recordings, histories and pictures


def main() -> None:
    """Evolve C in the real world."""
    hide_gpu()  # before TensorFlow is imported: the workers drive, on the processor
    from models import evolution

    evolution.validate(globals())
    from models import loading, worlds

    vae, rnn = loading.load_models(MODELS)
    starts = loading.load_starts(MODELS, vae)
    worker = worlds.make_real_world, loading.get_weights(vae, rnn), NUM_ENVS, MAX_IDLE_STEPS
    with worker_pool(CLUSTER, WORKERS, *worker) as workers:
        search = evolution.Evolution(
            workers,
            ("real",),
            script.settings(globals()) | {"SCRIPT": Path(__file__).name},
            loading.fingerprints(vae, rnn),
            loading.feature_basis(rnn, starts, FEATURES, COMPONENTS, WHITEN),
            history_path=Path(DATA, "controller.npz"),
            best_path=Path(MODELS, "controller.weights.h5"),
        )
        search.run(GENERATIONS)


if __name__ == "__main__":
    script.run(main, globals())
