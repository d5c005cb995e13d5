"""Step 10 of the tutorial: evolve C inside M's own dream, then see how it drives the real car.

Reads   MODELS/vae.weights.h5, rnn.weights.h5 and dream_starts.npz, and the controller that INIT_FROM names
Writes  MODELS/dream_controller.weights.h5 (the best so far in the dream), DATA/dream_controller.npz (the history; a run
        that was stopped continues from it), DATA/dream_controller.png (the return in the dream and on the real track)
Takes   2 minutes on 2 cores

The same search as in 05, but the population drives in another world: M predicts what comes next, the reward and the
end, and no frame of the game is drawn. The real score is shown and never used: neither by the search nor to choose the
controller that is kept.
"""

from pathlib import Path
from typing import Literal

from pipeline import script
from pipeline.environment import hide_gpu, usable_cores
from pipeline.script import NonNegativeInt, PossiblyEmpty
from pipeline.workers import worker_pool

GENERATIONS = 60  # tutorial 200; here a longer search overfits to the model's errors
POPULATION = 32  # controllers in a generation
EPISODES = 8  # dreams of each of them, the same for all
HARD_TRACKS: NonNegativeInt = 4  # how many of EPISODES are recent dreams with low returns
MAX_DREAM_STEPS = 600  # length of a dream: the longer it lasts, the stranger it gets
TEMPERATURE = 1.0  # of the dream: above 1 less certain, and harder to exploit (paper, section 4.3: 1.15 for Doom)
SIGMA = 0.1  # initial step size of CMA-ES; smaller steps overfit to the model's errors
DIAGONAL = False  # True: learn a variance for each number instead of a full covariance matrix
COMPONENTS = 20  # principal components of what C sees that the search moves along; 288: all of them
WHITEN = True  # True: scale the components to equal variance
FEATURES: Literal["zh", "z"] = "zh"  # what C sees: "zh" is z and h, "z" is z alone
# Steps without a new tile, in the dream without an expected reward, before an episode is stopped; 0: never
MAX_IDLE_STEPS: NonNegativeInt = 50
EVAL_EVERY = 20  # generations from one evaluation of the mean, in the dream and on the selection tracks, to the next
EVAL_EPISODES = 64  # episodes in an evaluation, at most 100: the selection tracks, and as many dreams
AVERAGE = 10  # the last means of the search whose average is evaluated and kept: a single mean wanders
# Where the search starts: zeros, or a controller in MODELS
INIT_FROM: Literal["zero", "dream_controller", "controller"] = "zero"
SEED: NonNegativeInt = 1  # of the search and of the dreams
DREAM_ENVS = 64  # dreams in lockstep in each worker
NUM_ENVS = 32  # cars driven in lockstep by each worker on the real track
CLUSTER: PossiblyEmpty = ""  # a Ray cluster to work on, "auto" or "host:port" (docs/cluster.md); "": this machine
WORKERS: NonNegativeInt = usable_cores()  # processes; on a cluster actors, 0: one for each of its CPUs
MODELS = "models"  # the folder of the weights
DATA = "data"  # the folder of recordings, histories and pictures


def main() -> None:
    """Evolve C in the dream."""
    hide_gpu()  # before TensorFlow is imported: the workers drive, on the processor
    from models import evolution

    evolution.validate(globals())
    from models import loading, weights, worlds

    vae, rnn = loading.load_models(MODELS)
    starts = loading.load_starts(MODELS, vae)
    sizes = DREAM_ENVS, TEMPERATURE, MAX_DREAM_STEPS, NUM_ENVS, MAX_IDLE_STEPS
    worker = worlds.make_dream_world, loading.get_weights(vae, rnn), starts, *sizes
    with worker_pool(CLUSTER, WORKERS, *worker) as workers:
        search = evolution.Evolution(
            workers,
            ("dream", "real"),
            script.settings(globals())
            | {"SCRIPT": Path(__file__).name, "the starts": weights.fingerprint((starts["mu"], starts["action"]))},
            loading.fingerprints(vae, rnn),
            loading.feature_basis(rnn, starts, FEATURES, COMPONENTS, WHITEN),
            history_path=Path(DATA, "dream_controller.npz"),
            best_path=Path(MODELS, "dream_controller.weights.h5"),
        )
        search.run(GENERATIONS)


if __name__ == "__main__":
    script.run(main, globals())
