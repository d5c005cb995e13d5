"""The two worlds that a controller can drive in, behind one interface: the real one, and M's dream of it.

`drive(parameters, tracks)` drives one car for each (row of parameters, track seed), all to their end, in lockstep:
V and M see whole batches, and a car that finishes gives its place to the next pair at once.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from models import controller, weights
from models.car_racing import FRAMES, CarRacing64
from models.rnn import MDNRNN
from models.vae import VAE

HOLD = 8  # frames that a disturbance of the action lasts


class Seen(NamedTuple):
    """One frame of one car, for who watches a drive."""

    pair: int  # which row of `parameters` and `tracks`
    frame: np.ndarray  # uint8 (64, 64, 3), what the car saw
    z: np.ndarray  # float32 (32,)
    h: np.ndarray  # float32 (256,), before this frame's z and action
    action: np.ndarray  # float32 (3,)
    reward: float
    done: bool  # left the field or finished the lap
    last: np.ndarray | None  # the frame after the last one, at the end of the drive


class RealWorld:
    """gym's CarRacing, seen by V and remembered by M.

    `cars` drive at once; it is also the size of the batch, always a full one, so that a car's z, h and return are the
    same to the last bit whoever drives beside it. A drive ends after `frames` at the latest. With `patience`, a car
    that has found no new tile for so many frames is stopped and charged what standing still until the end would cost;
    0 never stops one.
    """

    def __init__(
        self, vae: VAE, rnn: MDNRNN, cars: int, renderer: str = "fast", frames: int = FRAMES, patience: int = 0
    ) -> None:
        self.envs = [CarRacing64(renderer) for _ in range(cars)]
        self.frames, self.patience = frames, patience

        @tf.function(jit_compile=False, reduce_retracing=True)
        def think(
            frames: tf.Tensor, z: tf.Tensor, actions: tf.Tensor, h: tf.Tensor, c: tf.Tensor, driving: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            # What M remembers of the last frame, then what V sees in this one. Nothing is remembered at the start.
            h, c = rnn.advance(z, actions, (h, c))
            h, c = h * driving, c * driving
            z, _ = vae.encode(frames)
            return z, h, c, tf.concat([z, h], 1)

        self._think = think

    def drive(
        self,
        parameters: np.ndarray,
        tracks: np.ndarray,
        watch: Callable[[Seen], None] | None = None,
        noise: np.ndarray | None = None,
        pairs: Iterable[int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Drive one car for each row of `parameters` (n, 867) and track seed in `tracks` (n,).

        Returns the returns, float64 (n,), and the lengths in frames, int64 (n,). `watch` gets every frame of every
        car. `noise` (n,), as 01 wants it, disturbs each pair's actions by so much, drawn from its track's seed.
        `pairs` are the pairs to drive (all of them unless told); the returns of others are NaN.
        """
        n, cars = len(tracks), len(self.envs)
        returns, lengths = np.full(n, np.nan), np.zeros(n, np.int64)
        waiting = iter(range(n) if pairs is None else pairs)
        pair = np.full(cars, -1)  # which one is driven in each place, -1 for none
        frames = np.zeros((cars, 64, 64, 3), np.uint8)
        matrices = np.zeros((cars, controller.PARAMETERS), np.float32)
        driving = np.zeros((cars, 1), np.float32)  # 0 at a car's first frame
        total, tiles, last_tile, length = (np.zeros(cars) for _ in range(4))
        random: list[np.random.Generator | None] = [None] * cars
        disturbance = np.zeros((cars, 3))

        def next_pair(place: int) -> None:
            pair[place] = next(waiting, n)
            if pair[place] >= n:
                pair[place] = -1
                return
            frames[place] = self.envs[place].reset(seed=int(tracks[pair[place]]))[0]
            matrices[place] = parameters[pair[place]]
            driving[place] = total[place] = last_tile[place] = length[place] = 0
            tiles[place] = self.envs[place].tile_visited_count
            if noise is not None:
                random[place] = np.random.default_rng(int(tracks[pair[place]]))

        for place in range(cars):
            next_pair(place)
        z = tf.zeros((cars, 32))
        h, c = (tf.zeros((cars, 256)) for _ in range(2))
        actions = np.zeros((cars, 3), np.float32)
        while (pair >= 0).any():
            z, h, c, features = self._think(frames, z, actions, h, c, driving)
            actions = controller.act(matrices, features.numpy())
            driving[:] = 1
            for place, env in enumerate(self.envs):
                if pair[place] < 0:
                    continue
                if noise is not None:
                    if length[place] % HOLD == 0:
                        size = noise[pair[place]]
                        disturbance[place] = random[place].normal(0, (size, size, size / 2))
                    actions[place] = np.clip(actions[place] + disturbance[place], (-1, 0, 0), (1, 1, 1))
                frame, reward, left, stopped, _ = env.step(actions[place])
                total[place] += reward
                length[place] += 1
                if env.tile_visited_count > tiles[place]:
                    tiles[place], last_tile[place] = env.tile_visited_count, length[place]
                idle = self.patience and length[place] - last_tile[place] >= self.patience
                over = left or stopped or idle or length[place] >= self.frames
                if watch is not None:
                    see, remember = z[place].numpy(), h[place].numpy()
                    done = left or env.lap_finished
                    seen = frames[place].copy(), see, remember, actions[place].copy(), reward, done
                    watch(Seen(int(pair[place]), *seen, frame if over else None))
                if not over:
                    frames[place] = frame
                    continue
                if idle and not (left or stopped):
                    total[place] -= 0.1 * (FRAMES - length[place])
                returns[pair[place]], lengths[pair[place]] = total[place], length[place]
                next_pair(place)
        return returns, lengths


MADE_BY = {"controller": "05_train_controller.py", "dream_controller": "07_dream_train.py"}


def load(folder: Path | str, name: str = "controller") -> tuple[VAE, MDNRNN, np.ndarray]:
    """V, M and C of `folder`, or its "dream_controller". Raises `Refused` where one is missing or of another V or M."""
    vae, rnn = load_models(folder)
    path = Path(folder) / f"{name}.weights.h5"
    return vae, rnn, weights.load_controller(path, MADE_BY[name], **fingerprints(vae, rnn))


def load_models(folder: Path | str) -> tuple[VAE, MDNRNN]:
    """V and M of `folder`. Raises `Refused` where one is missing or M was trained on another V."""
    vae, rnn = VAE(), MDNRNN()
    weights.load(Path(folder) / "vae.weights.h5", vae, "02_train_vae.py")
    weights.load(Path(folder) / "rnn.weights.h5", rnn, "04_train_rnn.py", vae=weights.fingerprint(vae.get_weights()))
    return vae, rnn


def fingerprints(vae: VAE, rnn: MDNRNN) -> dict[str, str]:
    """What a controller that is trained with these carries."""
    return {"vae": weights.fingerprint(vae.get_weights()), "rnn": weights.fingerprint(rnn.get_weights())}
