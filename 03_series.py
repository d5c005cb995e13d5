"""Step 6 of the tutorial: every frame through V, so that M gets the rollouts as series of z.

Reads   DATA/rollouts/ (01), MODELS/vae.weights.h5 (02)
Writes  DATA/series.npz, MODELS/dream_starts.npz
Takes   about 20 seconds for 200,000 frames on 2 cores with bfloat16 (AMX), a minute without

The series keeps mean and log-variance of z, so that M can be given a fresh z for every batch. The dream starts are
short windows of real rollouts on the road: they warm M up before a dream begins.
"""

from pathlib import Path

from pipeline import UserError, script
from pipeline.script import NonNegativeInt, Share

BATCH_SIZE = 64  # frames in V at a time; always full, so that a frame's z doesn't depend on its neighbours
DREAM_STARTS = 1_024  # windows for dreams to start from
WARMUP_FRAMES = 16  # frames of each: M's state is warm after so many
ROAD_LOOKAHEAD = 32  # frames after a window in which the car may find road
EPISODE_START_SHARE: Share = 0.25  # share of the windows that begin where a rollout begins
SEED: NonNegativeInt = 1  # of all random numbers here
DATA = "data"  # the folder of recordings, histories and pictures
MODELS = "models"  # the folder of the weights

if __name__ == "__main__":
    script.check(globals())  # a wrong constant is reported before TensorFlow is imported, which takes seconds

from models import weights
from models.sizes import IMAGE_SHAPE, LATENT_DIM
from models.vae import VAE
from pipeline import rollouts
from pipeline.files import save_npz
from pipeline.progress import Progress

import numpy as np
import tensorflow as tf


def main() -> None:
    """Encode all rollouts, write the series, then the dream starts cut from it."""
    paths = rollouts.find(Path(DATA, "rollouts"))
    weights_path = Path(MODELS, "vae.weights.h5")
    vae = VAE()
    weights.load(weights_path, vae)
    origin = np.array(weights.fingerprint(vae.get_weights()))

    series = encode_rollouts(vae, paths)
    if len(series["lengths"]) < 2:
        raise UserError("fewer than 2 rollouts can be read: run 01_generate_data.py")
    if not (np.isfinite(series["mu"]).all() and np.isfinite(series["logvar"]).all()):
        raise UserError(f"V gives numbers that are not finite, so {weights_path} is no good: run 02_train_vae.py again")
    windows = dream_starts(series["lengths"], series["reward"], np.random.default_rng(SEED))
    series_path, starts_path = Path(DATA, "series.npz"), Path(MODELS, "dream_starts.npz")
    save_npz(series_path, **series, vae=origin)
    save_npz(starts_path, **{name: series[name][windows] for name in ("mu", "logvar", "action")}, vae=origin)
    ends = series["done"].sum()
    print(f"{series_path}: {len(series['lengths']):,} rollouts, {len(series['mu']):,} frames, {ends:,} of them an end")
    print(f"{starts_path}: {len(windows):,} windows of {WARMUP_FRAMES} frames")


def encode_rollouts(vae: VAE, paths: list[Path]) -> dict[str, np.ndarray]:
    """All rollouts that can be read as a series (pipeline/series.py says how it is laid out)."""
    encode = tf.function(vae.encode, input_signature=[tf.TensorSpec((BATCH_SIZE, *IMAGE_SHAPE), tf.uint8)])
    # Room for what the files say they hold: float16, 160 bytes a frame, so ten million frames are 1.6 GB.
    rows = sum(rollouts.length(path) for path in paths)
    mu, logvar = np.zeros((rows, LATENT_DIM), np.float16), np.zeros((rows, LATENT_DIM), np.float16)
    action, reward, done = np.zeros((rows, 3), np.float16), np.zeros(rows, np.float32), np.zeros(rows, bool)
    lengths, names, start = [], [], 0
    progress = Progress(rows, "frames")
    for path, rollout in rollouts.read_all(paths, skipped=set()):
        frames = len(rollout["obs"])
        place = slice(start, start + frames)
        mu[place], logvar[place] = encode_frames(encode, rollout["obs"])
        # The last observation has no action, reward or end: its row keeps zeros.
        driven = slice(start, start + frames - 1)
        action[driven], reward[driven], done[driven] = rollout["action"], rollout["reward"], rollout["done"]
        lengths.append(frames - 1)
        names.append(path.name)
        start += frames
        progress.update(start)
    arrays = {"mu": mu, "logvar": logvar, "action": action, "reward": reward, "done": done}
    series = {name: array[:start] for name, array in arrays.items()}
    return series | {"lengths": np.array(lengths, np.int32), "names": np.array(names)}


def encode_frames(encode, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`mu` and `logvar` (n, 32) of all frames `obs` (n, 64, 64, 3), BATCH_SIZE at a time, the last batch padded."""
    padded = np.concatenate([obs, np.zeros((-len(obs) % BATCH_SIZE, *obs.shape[1:]), obs.dtype)])
    parts = [encode(padded[start : start + BATCH_SIZE]) for start in range(0, len(padded), BATCH_SIZE)]
    mu, logvar = (np.concatenate(part)[: len(obs)] for part in zip(*parts))
    return mu, logvar


def dream_starts(lengths: np.ndarray, reward: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The rows (DREAM_STARTS, WARMUP_FRAMES) of the series that the dream starts are: all of them with an action.

    Only windows in which, or soon after, the car finds road (a tile pays about 3, a frame costs 0.1): on the grass
    there is nothing to learn in the few seconds of a dream.
    """
    total = np.concatenate([[0.0], np.cumsum(reward, dtype=np.float64)])
    ends = np.cumsum(lengths + 1) - 1  # the row of each rollout's last observation
    first = np.concatenate([np.arange(end - n, end - WARMUP_FRAMES + 1) for end, n in zip(ends, lengths)])
    end = ends[np.searchsorted(ends, first)]
    first = first[total[np.minimum(first + WARMUP_FRAMES + ROAD_LOOKAHEAD, end)] > total[first]]
    if not len(first):
        raise UserError(f"no rollout of {WARMUP_FRAMES} frames finds the road: run 01_generate_data.py with more")
    at_start = np.isin(first, ends - lengths)
    share = EPISODE_START_SHARE
    weight = np.full(len(first), 1 - share) + at_start * share * len(first) / max(at_start.sum(), 1)
    chosen = random.choice(first, DREAM_STARTS, p=weight / weight.sum())
    return chosen[:, None] + np.arange(WARMUP_FRAMES)


if __name__ == "__main__":
    script.run(main, globals())
