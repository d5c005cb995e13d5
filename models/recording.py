"""One recorded episode on the real track, and what M makes of it: in open loop, and one step ahead."""

from typing import NamedTuple

from models.rnn import MDNRNN
from models.vae import VAE, to_uint8

import numpy as np

CHUNK = 100  # images that V decodes at a time


class Recording(NamedTuple):
    """T steps of one episode."""

    frame: np.ndarray  # uint8 (T, 64, 64, 3), what the controller saw
    z: np.ndarray  # float32 (T, 32)
    action: np.ndarray  # float32 (T, 3)
    reward: np.ndarray  # float32 (T,)


class Expectation(NamedTuple):
    """What M expects after each step of a recording."""

    mean: np.ndarray  # (T, 32) of the next z
    variance: np.ndarray  # (T, 32)
    reward: np.ndarray  # (T,)


def record(steps: list) -> Recording:
    """A recording of the `worlds.Step`s of one episode."""
    kinds = (("frame", np.uint8), ("z", np.float32), ("action", np.float32), ("reward", np.float32))
    return Recording(*(np.array([getattr(step, name) for step in steps], kind) for name, kind in kinds))


def decode(vae: VAE, z: np.ndarray) -> np.ndarray:
    """V's images of z (…, 32): uint8 (…, 64, 64, 3)."""
    flat = z.reshape(-1, z.shape[-1])
    parts = [to_uint8(vae.decode(flat[start : start + CHUNK])).numpy() for start in range(0, len(flat), CHUNK)]
    images = np.concatenate(parts)
    return images.reshape(*z.shape[:-1], *images.shape[1:])


def open_loop(
    rnn: MDNRNN, recording: Recording, starts: np.ndarray, steps: int, temperature: float, random: np.random.Generator
) -> np.ndarray:
    """M's dreams of the episode from each step in `starts` (n,) on, given nothing but the actions: z (n, steps+1, 32).

    The first z of each is real. After the end of the recording the last action is repeated.
    """
    states = rnn.unroll(recording.z[None, :-1], recording.action[None, :-1])
    h, c = (np.concatenate([states[start][part] for start in starts]) for part in (0, 1))
    rows = np.minimum(starts[:, None] + np.arange(steps), len(recording.action) - 1)
    return rnn.open_loop(recording.z[starts], recording.action[rows], (h, c), temperature, random)


def expect(rnn: MDNRNN, recording: Recording) -> Expectation:
    """Mean and variance of the mixtures that M predicts after each step, and the expected reward."""
    prediction = rnn(recording.z[None], recording.action[None])
    logits, mu, log_sigma = (part.numpy()[0] for part in prediction[:3])
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    mean = (weight * mu).sum(-1)
    variance = (weight * (np.exp(2 * log_sigma) + mu**2)).sum(-1) - mean**2
    return Expectation(mean, variance, prediction.reward.numpy()[0])


def error_scales(vae: VAE, recording: Recording, expected: Expectation, z_noise: float) -> dict[str, np.ndarray]:
    """How far off M is, as root mean squares of each latent (32,), between two limits.

    M learned on z with `z_noise` of V's noise in it, so what it expects is compared with such a z.
    """
    batches = [recording.frame[start : start + CHUNK] for start in range(0, len(recording.frame), CHUNK)]
    noise = z_noise**2 * np.exp(np.concatenate([vae.encode(batch)[1] for batch in batches]))
    squares = {
        "spread of the latent itself": recording.z.var(0) + noise.mean(0),
        "M's expected error": expected.variance[:-1].mean(0),
        "M's error": np.mean((recording.z[1:] - expected.mean[:-1]) ** 2 + noise[1:], 0),
        "noise in z: the floor": noise.mean(0),
    }
    return {name: np.sqrt(square) for name, square in squares.items()}
