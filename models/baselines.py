"""What predicting the next z costs without M: baselines that need no network, and the floor."""

import math
from collections.abc import Iterable

import numpy as np

Sequences = Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]  # z (n, T+1, 32), action (n, T, 3), mask (n, T)


def baselines(train: Sequences, held_out: Sequences, active: np.ndarray) -> dict[str, float]:
    """Held-out negative log-likelihood of the next z in nats per active latent, of two Gaussian models.

    Persistence expects the next z to be the present one, linear regression a linear function of z and action; the
    variance of each latent is fitted on `train` too. `active` is bool (32,).
    """
    latents = len(active)
    size = latents + 4  # z, three controls, 1
    features, targets = np.zeros((size, size)), np.zeros((size, latents))
    squares, stay, count = np.zeros(latents), np.zeros(latents), 0
    for x, y in map(_pairs, train):
        features += x.T @ x
        targets += x.T @ y
        squares += (y**2).sum(0)
        stay += ((y - x[:, :latents]) ** 2).sum(0)
        count += len(x)
    coefficients = np.linalg.lstsq(features, targets, rcond=None)[0]
    residual = squares - 2 * (coefficients * targets).sum(0) + (coefficients * (features @ coefficients)).sum(0)
    pairs = [_pairs(sequences) for sequences in held_out]

    def nll(expected, variance: np.ndarray) -> float:
        """Mean of −log N(z; expected, variance) over the held-out frames and active latents."""
        each = [(np.log(2 * np.pi * variance) + (y - expected(x)) ** 2 / variance) / 2 for x, y in pairs]
        return float(np.concatenate(each)[:, active].mean())

    return {
        "persistence": nll(lambda x: x[:, :latents], np.maximum(stay / count, 1e-6)),
        "linear regression": nll(lambda x: x @ coefficients, np.maximum(residual / count, 1e-6)),
    }


def _pairs(sequences: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of each frame in the mask: z, action and 1, float64 (m, 36), and the next z, (m, 32)."""
    z, action, mask = sequences
    known = mask.astype(bool)
    x = np.concatenate([z[:, :-1], action, np.ones((*mask.shape, 1), np.float32)], -1)[known]
    return x.astype(np.float64), z[:, 1:][known].astype(np.float64)


def posterior_entropy(logvar: np.ndarray, z_noise: float, active: np.ndarray) -> float:
    """The floor, in nats per active latent: the entropy of what z was drawn from; even who knew mu would pay it.

    `logvar` is (m, 32), V's.
    """
    return math.log(z_noise) + float((math.log(2 * math.pi * math.e) + logvar[:, active].astype(np.float64)).mean() / 2)
