"""Step 6 of the tutorial: every frame through V, which leaves M the drives as series of z.

Reads   DATA/rollouts/ (01), MODELS/vae.weights.h5 (02)
Writes  DATA/series.npz, MODELS/dream_starts.npz
Takes   about 20 seconds for 200,000 frames on 2 cores with bfloat16 (AMX), a minute without

The series keeps mean and log-variance of z, so that M can be given a fresh z for every batch. The dream starts are
short windows of real drives on the road: a dream is set going with one of them, and then left alone.
"""

from pathlib import Path

from pipeline import UserError, rollouts, script
from pipeline.files import save_npz, suppress_stderr
from pipeline.progress import Progress
from pipeline.script import NonNegativeInt, Share

import numpy as np

BATCH = 64  # frames in V at a time; always full, so that a frame's z doesn't depend on its neighbours
DREAM_STARTS = 1_024  # windows for dreams to start from
DREAM_FRAMES = 16  # frames of each: M's state is warm after so many
DREAM_AHEAD = 32  # frames after it that count as well, when it is asked whether the car is on the road
AT_THE_START: Share = 0.25  # the share of them that begins where a drive begins
SEED: NonNegativeInt = 1
DATA = "data"
MODELS = "models"


def main() -> None:
    """Encode all rollouts, write the series, then the dream starts cut from it."""
    paths = rollouts.find(Path(DATA, "rollouts"))
    weights_path = Path(MODELS, "vae.weights.h5")
    from models import weights

    weights.check(weights_path, "02_train_vae.py")

    with suppress_stderr():
        import tensorflow as tf

    from models.vae import LATENTS, PICTURE, VAE

    vae = VAE()
    weights.load(weights_path, vae, "02_train_vae.py")
    origin = weights.fingerprint(vae.get_weights())
    encode = tf.function(vae.encode, input_signature=[tf.TensorSpec((BATCH, *PICTURE), tf.uint8)])

    # Room for what the files say they hold: float16, 160 bytes a frame, so ten million frames are 1.6 GB.
    rows = sum(rollouts.length(path) for path in paths)
    mu, logvar = np.zeros((rows, LATENTS), np.float16), np.zeros((rows, LATENTS), np.float16)
    action, reward, done = np.zeros((rows, 3), np.float16), np.zeros(rows, np.float32), np.zeros(rows, bool)
    lengths, names, start = [], [], 0
    progress = Progress(rows, "frames")
    for path, rollout in rollouts.read_all(paths, skipped=set()):
        frames = len(rollout["obs"])
        place = slice(start, start + frames)
        mu[place], logvar[place] = encode_all(encode, rollout["obs"])
        # The last observation has no action, reward or end: its row keeps zeros.
        driven = slice(start, start + frames - 1)
        action[driven], reward[driven], done[driven] = rollout["action"], rollout["reward"], rollout["done"]
        lengths.append(frames - 1)
        names.append(path.name)
        start += frames
        progress.update(start)
    if len(lengths) < 2:
        raise UserError("fewer than 2 rollouts can be read: run 01_generate_data.py")
    if not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
        raise UserError(f"V gives numbers that are not finite: train it anew, {weights_path} is no good")

    lengths = np.array(lengths, np.int32)
    windows = dream_starts(lengths, reward, np.random.default_rng(SEED))
    series_path, starts_path = Path(DATA, "series.npz"), Path(MODELS, "dream_starts.npz")
    save_npz(
        series_path,
        mu=mu[:start],
        logvar=logvar[:start],
        action=action[:start],
        reward=reward[:start],
        done=done[:start],
        lengths=lengths,
        names=np.array(names),
        vae=np.array(origin),
    )
    save_npz(starts_path, mu=mu[windows], logvar=logvar[windows], action=action[windows], vae=np.array(origin))
    print(f"{series_path}: {len(lengths):,} rollouts, {start:,} frames, {done.sum():,} of them the end of a drive")
    print(f"{starts_path}: {len(windows):,} windows of {DREAM_FRAMES} frames")


def encode_all(encode, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`mu` and `logvar` (n, 32) of all frames `obs` (n, 64, 64, 3), BATCH at a time, the last batch filled up."""
    filled = np.concatenate([obs, np.zeros((-len(obs) % BATCH, *obs.shape[1:]), obs.dtype)])
    parts = [encode(filled[start : start + BATCH]) for start in range(0, len(filled), BATCH)]
    mu, logvar = (np.concatenate(part)[: len(obs)] for part in zip(*parts))
    return mu, logvar


def dream_starts(lengths: np.ndarray, reward: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The rows (DREAM_STARTS, DREAM_FRAMES) of the series that the dream starts are: all of them with an action.

    Only windows in which, or soon after, the car finds road (a tile pays about 3, a frame costs 0.1): from the grass
    there is nothing to learn in the few seconds of a dream.
    """
    total = np.concatenate([[0.0], np.cumsum(reward, dtype=np.float64)])
    ends = np.cumsum(lengths + 1) - 1  # the row of each drive's last observation
    first = np.concatenate([np.arange(end - n, end - DREAM_FRAMES + 1) for end, n in zip(ends, lengths)])
    end = ends[np.searchsorted(ends, first)]
    first = first[total[np.minimum(first + DREAM_FRAMES + DREAM_AHEAD, end)] > total[first]]
    if not len(first):
        raise UserError(f"no rollout of {DREAM_FRAMES} frames finds the road: run 01_generate_data.py with more")
    at_the_start = np.isin(first, ends - lengths)
    weight = np.full(len(first), 1 - AT_THE_START) + at_the_start * AT_THE_START * len(first) / max(
        at_the_start.sum(), 1
    )
    chosen = random.choice(first, DREAM_STARTS, p=weight / weight.sum())
    return chosen[:, None] + np.arange(DREAM_FRAMES)


if __name__ == "__main__":
    script.run(main, globals())
