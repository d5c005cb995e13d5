"""The two worlds that a controller can drive in, behind one interface: the real one, and M's dream of it.

`drive(parameters, tracks)` drives one car for each (row of parameters, track seed), all to their end, in lockstep:
V and M see whole batches, and a car that finishes gives its place to the next pair at once.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from models import controller, weights
from models.car_racing import FRAMES, CarRacing64
from models.rnn import MDNRNN
from models.vae import VAE
from pipeline import UserError
from pipeline.files import load_npz, suppress_stderr

import numpy as np

with suppress_stderr():
    import tensorflow as tf

HOLD = 8  # frames that a disturbance of the action lasts


class Seen(NamedTuple):
    """One frame of one car, for who watches a drive."""

    pair: int  # which row of `parameters` and `tracks`
    frame: np.ndarray | None  # uint8 (64, 64, 3), what the car saw; None in a dream
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
        at_once: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Drive one car for each row of `parameters` (n, 867) and track seed in `tracks` (n,).

        Returns the returns, float64 (n,), and the lengths in frames, int64 (n,). `watch` gets every frame of every
        car. `noise` (n,), as 01 wants it, disturbs each pair's actions by so much, drawn from its track's seed.
        `pairs` are the pairs to drive (all of them unless told), no more than `at_once` at a time; the returns of
        others are NaN.
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

        for place in range(min(cars, at_once or cars)):
            next_pair(place)
        z = tf.zeros((cars, 32))
        h, c = (tf.zeros((cars, 256)) for _ in range(2))
        actions = np.zeros((cars, 3), np.float32)
        while (pair >= 0).any():
            z, h, c, features = self._think(frames, z, actions, h, c, driving)
            features = features.numpy()
            actions = controller.act(matrices, features)
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
                    see, remember = np.split(features[place].copy(), [32])
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


class DreamWorld:
    """M's hallucination: no game, no pictures; each next z is drawn from what M expects (paper, section 4).

    A dream starts where a real rollout was: the `starts` are windows of real frames, `mu` (n, k, 32) and `action`
    (n, k, 3), that warm M up. Which one, and all the noise, is decided by the track seed, so every candidate that
    dreams of a track dreams with the same luck. The reward is M's expectation, the end a draw from its probability;
    a dream is over after `frames` at the latest. `cars` dream at once, in one compiled loop.
    """

    def __init__(
        self, rnn: MDNRNN, starts: dict[str, np.ndarray], cars: int, temperature: float = 1.0, frames: int = 400
    ) -> None:
        self.starts, self.cars, self.frames = starts, cars, frames
        rnn.freeze()

        @tf.function
        def dream(mu, action, matrices, biases, noise, watched):
            # mu (n, k, 32), action (n, k, 3), matrices (n, 288, 3), biases (n, 3), noise (frames, n, 65)
            h, c = rnn.initial_state(cars)
            for k in range(mu.shape[1] - 1):
                h, c = rnn.advance(mu[:, k], action[:, k], (h, c))
            z, alive, total, length = mu[:, -1], tf.ones(cars), tf.zeros(cars), tf.zeros(cars)
            seen = tf.TensorArray(tf.float32, frames if watched else 0, element_shape=(cars, controller.FEATURES + 4))
            for t in tf.range(frames):
                if not tf.reduce_any(alive > 0):
                    break
                features = tf.concat([z, h], 1)
                # The same as controller.act, on tensors.
                act = tf.tanh(tf.einsum("nf,nfa->na", features, matrices) + biases)
                steer, gas, brake = act[:, :1], (act[:, 1:2] + 1) / 2, tf.clip_by_value(act[:, 2:], 0, 1)
                act = tf.concat([steer, gas, brake], 1)
                prediction, (h, c) = rnn.step(z, act, (h, c))
                if watched:
                    seen = seen.write(t, tf.concat([features, act, prediction.reward[:, None]], 1))
                total += prediction.reward * alive
                length += alive
                alive *= tf.cast(noise[t, :, 64] >= tf.sigmoid(prediction.done), tf.float32)
                z = rnn.sample(prediction, temperature, (noise[t, :, :32], noise[t, :, 32:64]))
            return total, length, seen.stack()

        self._dream = dream

    def drive(
        self,
        parameters: np.ndarray,
        tracks: np.ndarray,
        watch: Callable[[Seen], None] | None = None,
        pairs: Iterable[int] | None = None,
        at_once: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `RealWorld.drive`; who watches gets no frame, but z, from which V can draw it."""
        n = len(tracks)
        returns, lengths = np.full(n, np.nan), np.zeros(n, np.int64)
        waiting = iter(range(n) if pairs is None else pairs)
        luck: dict[int, tuple[int, np.ndarray]] = {}
        while batch := list(islice(waiting, min(self.cars, at_once or self.cars))):
            for seed in {int(tracks[pair]) for pair in batch} - luck.keys():
                luck[seed] = self._luck(seed)
            rows = batch + batch[:1] * (self.cars - len(batch))  # always a full batch
            starts = [luck[int(tracks[pair])][0] for pair in rows]
            noise = np.stack([luck[int(tracks[pair])][1] for pair in rows], 1)
            chosen = parameters[rows].astype(np.float32)
            total, length, seen = self._dream(
                self.starts["mu"][starts].astype(np.float32),
                self.starts["action"][starts].astype(np.float32),
                chosen[:, controller.ACTIONS :].reshape(-1, controller.FEATURES, controller.ACTIONS),
                chosen[:, : controller.ACTIONS],
                noise,
                watch is not None,
            )
            returns[batch] = total.numpy()[: len(batch)]
            lengths[batch] = length.numpy()[: len(batch)]
            if watch is not None:
                for pair, car in zip(batch, np.moveaxis(seen.numpy(), 1, 0)):
                    for t, (*features, steer, gas, brake, reward) in enumerate(car[: lengths[pair]]):
                        z, h = np.split(np.array(features), [32])
                        done = t + 1 == lengths[pair] < self.frames
                        watch(Seen(pair, None, z, h, np.array([steer, gas, brake]), reward, done, None))
        return returns, lengths

    def _luck(self, seed: int) -> tuple[int, np.ndarray]:
        """Where the dream of a track starts, and its noise for each frame: uniform (32), normal (32), uniform (1)."""
        random = np.random.default_rng(seed)
        start = int(random.integers(len(self.starts["mu"])))
        uniform, normal = random.random((self.frames, 32)), random.normal(size=(self.frames, 32))
        return start, np.concatenate([uniform, normal, random.random((self.frames, 1))], 1).astype(np.float32)


def load(folder: Path | str, name: str = "controller") -> tuple[VAE, MDNRNN, np.ndarray]:
    """V, M and C of `folder`, or its "dream_controller". Raises `UserError` where one is missing or does not fit."""
    vae, rnn = load_models(folder)
    return vae, rnn, weights.load_controller(folder, name, **fingerprints(vae, rnn))


def load_models(folder: Path | str) -> tuple[VAE, MDNRNN]:
    """V and M of `folder`. Raises `UserError` where one is missing or M was trained on another V."""
    vae, rnn = VAE(), MDNRNN()
    weights.load(Path(folder) / "vae.weights.h5", vae, "02_train_vae.py")
    weights.load(Path(folder) / "rnn.weights.h5", rnn, "04_train_rnn.py", vae=weights.fingerprint(vae.get_weights()))
    return vae, rnn


def fingerprints(vae: VAE, rnn: MDNRNN) -> dict[str, str]:
    """What a controller that is trained with these carries."""
    return {"vae": weights.fingerprint(vae.get_weights()), "rnn": weights.fingerprint(rnn.get_weights())}


def get_weights(vae: VAE, rnn: MDNRNN) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """V and M as arrays, for workers that may be on another machine."""
    return vae.get_weights(), rnn.get_weights()


def build_models(models: tuple[list[np.ndarray], list[np.ndarray]]) -> tuple[VAE, MDNRNN]:
    """V and M again, of what `get_weights` returns."""
    vae, rnn = VAE(), MDNRNN()
    vae.set_weights(models[0])
    rnn.set_weights(models[1])
    return vae, rnn


def prepare_real(models: tuple, cars: int, patience: int) -> dict[str, RealWorld]:
    """What a worker of 05 works with; `models` is what `get_weights` returns."""
    return {"real": RealWorld(*build_models(models), cars, patience=patience)}


def load_starts(folder: Path | str, vae: VAE) -> dict[str, np.ndarray]:
    """Where dreams start. Raises `UserError` where the file is missing or of another V."""
    path = Path(folder) / "dream_starts.npz"
    starts = load_npz(path, "03_series.py")
    if str(starts.get("vae")) != weights.fingerprint(vae.get_weights()):
        raise UserError(f"{path} was made with another V than the one here: run 03_series.py again")
    mu, action = (starts.get(name, np.zeros(0)) for name in ("mu", "action"))
    fit = mu.ndim == action.ndim == 3 and mu.shape == (*action.shape[:2], 32) and action.shape[2] == 3 and mu.size
    if not (fit and all(array.dtype.kind == "f" and np.isfinite(array).all() for array in (mu, action))):
        raise UserError(f"{path} does not hold starts of dreams: delete it and run 03_series.py")
    return starts


def directions(
    rnn: MDNRNN, starts: dict[str, np.ndarray], features: str, components: int, whitened: bool
) -> np.ndarray:
    """`controller.directions` of what a controller sees at the last frame of each start of a dream: z and h, or z."""
    mu, action = starts["mu"].astype(np.float32), starts["action"].astype(np.float32)
    state = rnn.initial_state(len(mu))
    for k in range(mu.shape[1] - 1):
        state = rnn.advance(mu[:, k], action[:, k], state)
    seen = np.concatenate([mu[:, -1], state[0]], 1) if features == "zh" else mu[:, -1]
    return controller.directions(seen, components, whitened)


def prepare_dream(
    models: tuple, starts: dict, dreams: int, temperature: float, frames: int, cars: int, patience: int
) -> dict[str, DreamWorld | RealWorld]:
    """What a worker of 07 works with: the dream to learn in, and the real world to look how far that carries."""
    _, rnn = build_models(models)
    return {"dream": DreamWorld(rnn, starts, dreams, temperature, frames), **prepare_real(models, cars, patience)}
