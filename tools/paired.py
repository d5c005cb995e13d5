"""Does the agent score the same on our pictures as on gym's? `python -m tools.paired [NAME=value …]`

Reads data/score.npz, what 06 scored on gym's own renderer, drives the same controller on the same tracks drawn by us,
and prints the mean paired difference with its standard error. Nobody is stopped early in either.
"""

import os
import sys
from pathlib import Path

from pipeline import script
from pipeline.files import load_npz
from pipeline.workers import WorkerPool

import numpy as np

NUM_ENVS = 32
WORKERS = os.cpu_count()
MODELS = "models"
DATA = "data"


def main() -> None:
    """Drive, subtract."""
    from models import evolution, loading, worlds

    score = load_npz(Path(DATA) / "score.npz", "06_visualise.py EPISODES=100")
    vae, rnn, parameters = loading.load(MODELS, str(score["controller"]))
    with WorkerPool(WORKERS, worlds.make_real_world, loading.get_weights(vae, rnn), NUM_ENVS, 0) as workers:
        ours = evolution.evaluate(workers, "real", parameters[None], score["tracks"])[0][0]
    gyms = score["agent"]
    difference = ours - gyms
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    print(f"{len(ours)} tracks: gym {gyms.mean():.1f} ± {gyms.std():.1f}, fast {ours.mean():.1f} ± {ours.std():.1f}")
    print(f"mean paired difference {difference.mean():+.1f}, standard error {error:.1f}")
    if abs(difference.mean()) > min(10, 2 * error):
        sys.exit("NOT what is asked for: within 10 points and within 2 standard errors")


if __name__ == "__main__":
    script.run(main, globals())
