"""Does the dream rank controllers as the real track does? `python -m tools.correlate [NAME=value …]`

Takes 50 controllers out of a history of 05, spread evenly over their real returns, drives each of them on 16 real
tracks and in 16 dreams, and prints Spearman's rank correlation of the two returns, overall and within the better
half. Draws data/correlation.png.
"""

import os
from pathlib import Path

from models.tracks import SELECTION_TRACKS
from pipeline import script
from pipeline.files import load_npz
from pipeline.workers import WorkerPool

import numpy as np

CONTROLLERS = 50
EPISODES = 16  # on real tracks, and as many dreams
MAX_DREAM_STEPS = 400
MAX_IDLE_STEPS = 100  # without a new tile or an expected reward, before an episode is stopped
TEMPERATURE = 1.0
WORKERS = os.cpu_count()
MODELS = "models"
DATA = "data"


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, ties sharing their mean rank."""
    below = (values[:, None] > values).sum(1)
    return below + (values[:, None] == values).sum(1) / 2


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation: Pearson's, of the ranks."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def main() -> None:
    """Choose, drive, compare."""
    import json

    from models import evolution, loading, worlds
    from pipeline import plots

    history = load_npz(Path(DATA) / "controller.npz", "05_train_controller.py")
    constants = json.loads(str(history["settings"]))
    numbers = (constants[name] for name in ("POPULATION", "SIGMA", "SEED", "DIAGONAL"))
    search = evolution.CMAES(history["x0"], history["basis"], *numbers)
    candidates = []
    for fitness in history["fitness"]:
        candidates.append(search.ask())
        search.tell(fitness)
    candidates, returns = np.concatenate(candidates), np.concatenate(history["fitness"])
    wanted = np.linspace(returns.min(), returns.max(), CONTROLLERS)
    chosen = sorted({int(np.argmin(abs(returns - value))) for value in wanted})
    parameters = candidates[chosen]
    tracks = np.array(SELECTION_TRACKS[-EPISODES:])
    vae, rnn = loading.load_models(MODELS)
    starts = loading.load_starts(MODELS, vae)
    sizes = 256, TEMPERATURE, MAX_DREAM_STEPS, 32, MAX_IDLE_STEPS
    worker = worlds.make_dream_world, loading.get_weights(vae, rnn), starts, *sizes
    with WorkerPool(WORKERS, *worker) as workers:
        dream = evolution.evaluate(workers, "dream", parameters, tracks)[0].mean(1)
        real = evolution.evaluate(workers, "real", parameters, tracks)[0].mean(1)
    better = real >= np.median(real)
    text = (
        f"Spearman {spearman(dream, real):.2f} over all, {spearman(dream[better], real[better]):.2f} in the better half"
    )
    print(f"{len(chosen)} controllers, {EPISODES} tracks and dreams each: {text}")
    with plots.figure(Path(DATA) / "correlation.png", text) as axes:
        axes.scatter(real, dream)
        axes.set(
            xlabel=f"return on {EPISODES} real tracks", ylabel=f"return in {EPISODES} dreams of {MAX_DREAM_STEPS} steps"
        )


if __name__ == "__main__":
    script.run(main, globals())
