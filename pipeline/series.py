"""The series on disk, as 03 writes it and 04 reads it: all rollouts one after the other, frames replaced by V's z.

`DATA/series.npz`, for n rollouts of T frames each, one row per observation, so T+1 rows a rollout:

    mu, logvar  float16 (rows, latents)   of z, for every observation
    action      float16 (rows, 3)         zeros in the last row of a rollout, which has no action, reward or end
    reward      float32 (rows,)
    done        bool    (rows,)
    lengths     int32   (n,)              T of each rollout
    names       str     (n,)              its file
    vae         str                       fingerprint of V
"""

import zlib
from pathlib import Path

from pipeline import UserError
from pipeline.files import load_npz

import numpy as np

PRODUCER = "03_series.py"


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays, checked. Raises `UserError` where they are missing or not a series."""
    series = load_npz(path, PRODUCER)
    cure = f"delete it and run {PRODUCER}"
    names = ("mu", "logvar", "action", "reward", "done", "lengths", "names", "vae")
    if missing := [name for name in names if name not in series]:
        raise UserError(f"{path} is not a series, it has no {missing[0]}: {cure}")
    rows = int((series["lengths"].astype(np.int64) + 1).sum()) if series["lengths"].dtype == np.int32 else -1
    latents = series["mu"].shape[-1:]
    shapes = {"mu": (rows, *latents), "logvar": (rows, *latents), "action": (rows, 3), "reward": (rows,)}
    shapes |= {"done": (rows,), "names": series["lengths"].shape}
    for name, shape in shapes.items():
        if series[name].shape != shape:
            raise UserError(f"{path} is not a series, its {name} is {series[name].shape}: {cure}")
    if len(series["lengths"]) < 2 or series["lengths"].min() < 1:
        raise UserError(f"{path} is not a series, it holds fewer than 2 rollouts or an empty one: {cure}")
    for name in ("mu", "logvar", "action", "reward"):
        if not np.isfinite(series[name]).all():
            raise UserError(f"{path} holds {name}s that are not finite: {cure}")
    return series


def episodes(series: dict[str, np.ndarray]) -> np.ndarray:
    """The first row and the length T of each rollout, int (n, 2)."""
    rows = series["lengths"].astype(np.int64) + 1
    return np.stack([np.cumsum(rows) - rows, rows - 1], 1)


def summary(series: dict[str, np.ndarray]) -> str:
    """A text that changes when the rollouts do."""
    digits = zlib.crc32(series["names"].tobytes() + series["lengths"].tobytes())
    return f"{len(series['names'])} rollouts ({digits:08x})"


def active_latents(series: dict[str, np.ndarray], episodes: np.ndarray, least_std: float) -> np.ndarray:
    """Which latents V uses, bool (latents,): their mean varies over the episodes by more than `least_std`."""
    some = episodes[:: len(episodes) // 3_000 + 1]
    rows = np.concatenate([np.arange(first, first + length) for first, length in some])
    rows = rows[:: len(rows) // 1_000_000 + 1]
    active = series["mu"][rows].std(0, dtype=np.float64) > least_std
    return active if active.any() else ~active  # a V that has learned nothing yet: compare on all


def slice_sequences(
    series: dict[str, np.ndarray], first: np.ndarray, last: np.ndarray, steps: int
) -> dict[str, np.ndarray]:
    """Sequences of `steps` frames from row `first` on, padded after row `last` and masked there.

    `first` and `last` are (n,). Returns mu and logvar (n, steps+1, latents), action (n, steps, 3), and reward, done and
    mask (n, steps), all float32.
    """
    rows = first[:, None] + np.arange(steps + 1)
    mask = rows[:, :-1] < last[:, None]
    rows = np.minimum(rows, last[:, None])
    arrays = {name: series[name][rows] for name in ("mu", "logvar")}
    arrays |= {name: series[name][rows[:, :-1]] for name in ("action", "reward", "done")}
    return {name: array.astype(np.float32) for name, array in (arrays | {"mask": mask}).items()}


def sample_windows(
    series: dict[str, np.ndarray], episodes: np.ndarray, count: int, steps: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """`count` random windows of `steps` frames, as `slice_sequences`: an episode is drawn as often as it has frames."""
    first, length = episodes[random.choice(len(episodes), count, p=episodes[:, 1] / episodes[:, 1].sum())].T
    offset = random.integers(0, np.maximum(length - steps, 0) + 1)
    return slice_sequences(series, first + offset, first + length, steps)


def full_episodes(series: dict[str, np.ndarray], episodes: np.ndarray) -> dict[str, np.ndarray]:
    """Whole episodes from their starts, as `slice_sequences`, padded to the longest."""
    first, length = episodes.T
    return slice_sequences(series, first, first + length, int(length.max()))
