"""The two worlds that a controller can drive in, behind one interface: the real one, and M's dream of it.

`drive(parameters, tracks)` drives one episode for each (row of parameters, track seed), all to their end, in lockstep:
V and M see whole batches, and a car whose episode is over starts the next one at once.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from models import controller
from models.car_racing import MAX_STEPS, CarRacing64
from models.episode import Car, Step
from models.loading import build_models
from models.loading import load as load  # a name that others rely on
from models.rnn import MDNRNN
from models.sizes import ACTION_DIM, HIDDEN_SIZE, IMAGE_SHAPE, LATENT_DIM
from models.vae import VAE
from pipeline.files import suppress_stderr

import numpy as np

with suppress_stderr():
    import keras
    import tensorflow as tf

NOISE_STEPS = 8  # steps for which one disturbance of the action is held


class RealWorld:
    """gym's CarRacing, seen by V and remembered by M.

    `num_envs` cars drive at once. V's convolutions see those that still drive. All else is computed for a batch of
    `num_envs`, or the order of sums would depend on how many drive: a car's z, h and return are bit-identical
    regardless of the others. An episode ends after `max_steps` at the latest. With `max_idle_steps`, a car that finds
    no new tile for so many steps is stopped and charged what standing still to the end would cost; 0 never stops one.
    """

    def __init__(
        self,
        vae: VAE,
        rnn: MDNRNN,
        num_envs: int,
        renderer: str = "fast",
        max_steps: int = MAX_STEPS,
        max_idle_steps: int = 0,
    ) -> None:
        self.envs = [CarRacing64(renderer) for _ in range(num_envs)]
        self.max_steps, self.max_idle_steps = max_steps, max_idle_steps

        layers = [*vae.convolutions, vae.mu, vae.logvar, rnn.lstm.cell]
        # As constants, the weights are cast and laid out for the processor once, not in every call.
        constant_weights = [(weight, weight.numpy()) for layer in layers for weight in layer.weights]

        @tf.function(jit_compile=False)
        def observe(frames: tf.Tensor, slots: tf.Tensor, controls: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
            # What M remembers of the last frame, then what V sees in this one. h and c are zero at the start.
            # frames of the cars in `slots`; controls: actions, and 0 at a first frame; state: z, h, c side by side.
            actions, started = tf.split(controls, [ACTION_DIM, 1], 1)
            z, h, c = tf.split(state, [LATENT_DIM, HIDDEN_SIZE, HIDDEN_SIZE], 1)
            with keras.StatelessScope(constant_weights):
                h, c = rnn.update_state(z, actions, (h, c))
                mu = vae.mu(tf.scatter_nd(slots, vae.convolve(frames), (num_envs, 1024)))  # C sees V's mean
            return tf.concat([mu, h * started, c * started], 1)

        # A concrete function of few arguments: calling it takes a third of the time.
        self._observe = observe.get_concrete_function(
            tf.TensorSpec((None, *IMAGE_SHAPE), tf.uint8),
            tf.TensorSpec((None, 1), tf.int32),
            tf.TensorSpec((num_envs, ACTION_DIM + 1), tf.float32),
            tf.TensorSpec((num_envs, LATENT_DIM + 2 * HIDDEN_SIZE), tf.float32),
        )

    def drive(
        self,
        parameters: np.ndarray,
        tracks: np.ndarray,
        on_step: Callable[[Step], None] | None = None,
        noise: np.ndarray | None = None,
        episodes: Iterable[int] | None = None,
        max_parallel: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Drive one episode for each row of `parameters` (n, 867) and track seed in `tracks` (n,).

        Returns the returns, float64 (n,), and the lengths in steps, int64 (n,). `on_step` gets every step of every car.
        `noise` (n,) is the standard deviation of what is added to each episode's actions, drawn from its track's seed.
        `episodes` are the rows to drive, by default all; the returns of the others are NaN. It is consumed one by one:
        all workers draw from one counter, and `max_parallel` keeps one of them from taking everything first.
        """
        n, num_envs = len(tracks), len(self.envs)
        returns, lengths = np.full(n, np.nan), np.zeros(n, np.int64)
        waiting = iter(range(n) if episodes is None else episodes)
        cars = [Car(env, self.max_steps, self.max_idle_steps) for env in self.envs]
        frames = np.zeros((num_envs, *IMAGE_SHAPE), np.uint8)
        chosen = np.zeros((num_envs, controller.PARAMETERS), np.float32)
        controls = np.zeros((num_envs, ACTION_DIM + 1), np.float32)  # the last is 0 at a car's first frame
        disturbances: list[Iterator[np.ndarray]] = [iter(())] * num_envs

        def start_next(slot: int) -> None:
            episode = next(waiting, None)
            cars[slot].episode = episode
            if episode is None:
                return
            track = int(tracks[episode])
            frames[slot], chosen[slot] = cars[slot].reset(episode, track), parameters[episode]
            controls[slot, -1] = 0
            if noise is not None:
                disturbances[slot] = _disturbances(noise[episode], track)

        for slot in range(min(num_envs, max_parallel or num_envs)):
            start_next(slot)
        state = tf.zeros((num_envs, LATENT_DIM + 2 * HIDDEN_SIZE))
        while slots := [slot for slot, car in enumerate(cars) if car.episode is not None]:
            rows = tf.constant(slots, tf.int32, (len(slots), 1))
            state = self._observe(tf.constant(frames[slots]), rows, tf.constant(controls), state)
            features = state.numpy()[:, : controller.FEATURES]
            controls[:, :-1], controls[:, -1] = controller.act(chosen, features), 1
            for slot in slots:
                car, action = cars[slot], controls[slot, :-1]  # a view: M sees the disturbed action too
                assert car.episode is not None  # or it would have no slot here
                if noise is not None:
                    action[:] = np.clip(action + next(disturbances[slot]), (-1, 0, 0), (1, 1, 1))
                frame, reward, done, episode_over = car.step(action)
                if on_step is not None:
                    z, h = np.split(features[slot].copy(), [LATENT_DIM])
                    final_obs = frame if episode_over else None
                    on_step(Step(car.episode, frames[slot].copy(), z, h, action.copy(), reward, done, final_obs))
                frames[slot] = frame
                if episode_over:
                    returns[car.episode], lengths[car.episode] = car.total, car.length
                    start_next(slot)
        return returns, lengths


def _disturbances(std: float, track: int) -> Iterator[np.ndarray]:
    """What is added to a car's action at each step, (3,): a new draw every NOISE_STEPS steps, from its track's seed."""
    random = np.random.default_rng(track)
    while True:
        disturbance = random.normal(0, (std, std, std / 2))
        for _ in range(NOISE_STEPS):
            yield disturbance


class DreamWorld:
    """M's hallucination: no game, no images; each next z is drawn from what M expects (paper, section 4).

    A dream starts where a real rollout was: the `starts` are windows of real frames, `mu` (n, k, 32) and `action`
    (n, k, 3), that warm M up. Which one, and all the noise, is decided by the track seed, so every candidate that
    dreams of a track has the same noise. The reward is M's expectation (of a reward that was clipped, so leaving the
    field costs a dream only what would have followed), the end a draw from its probability; a dream is over after
    `max_steps` at the latest. `num_envs` dream at once, in one compiled loop.

    With `max_idle_steps`, a dream that has expected no reward for so many steps is stopped and charged what standing
    still to the end would cost, as in `RealWorld`. A car that is lost dreams of a road sooner or later.
    """

    def __init__(
        self,
        rnn: MDNRNN,
        starts: dict[str, np.ndarray],
        num_envs: int,
        temperature: float = 1.0,
        max_steps: int = 400,
        max_idle_steps: int = 0,
    ) -> None:
        self.starts, self.num_envs, self.max_steps = starts, num_envs, max_steps
        rnn.cast_for_inference()

        @tf.function
        def dream(mu, action, parameters, noise, recording):
            # mu (n, k, 32), action (n, k, 3), parameters (n, 867), noise (steps, n, 65)
            # seen (steps, n, 293): z, h, action, reward, 1 where the episode ends
            h, c = rnn.unroll(mu[:, :-1], action[:, :-1])[-1]
            z, alive = mu[:, -1], tf.ones(num_envs)
            total, length, idle = tf.zeros(num_envs), tf.zeros(num_envs), tf.zeros(num_envs)
            seen = tf.TensorArray(
                tf.float32,
                max_steps if recording else 0,
                element_shape=(num_envs, controller.FEATURES + ACTION_DIM + 2),
            )
            for t in tf.range(max_steps):
                if not tf.reduce_any(alive > 0):
                    break
                features = tf.concat([z, h], 1)
                act = controller.act(parameters, features, tf)
                prediction, (h, c) = rnn.step(z, act, (h, c))
                goes_on = tf.cast(noise[t, :, -1] >= tf.sigmoid(prediction.done), tf.float32)
                if recording:
                    outcome = tf.stack([prediction.reward, 1 - goes_on], 1)
                    seen = seen.write(t, tf.concat([features, act, outcome], 1))
                total += prediction.reward * alive
                length += alive
                alive *= goes_on
                if max_idle_steps:
                    idle = tf.where(prediction.reward > 0, 0.0, idle + 1)
                    stopped = alive * tf.cast(idle >= max_idle_steps, tf.float32)
                    total -= 0.1 * stopped * tf.cast(max_steps - 1 - t, tf.float32)
                    alive -= stopped
                z = rnn.sample(prediction, temperature, (noise[t, :, :LATENT_DIM], noise[t, :, LATENT_DIM:-1]))
            return total, length, seen.stack()

        self._dream = dream

    def drive(
        self,
        parameters: np.ndarray,
        tracks: np.ndarray,
        on_step: Callable[[Step], None] | None = None,
        episodes: Iterable[int] | None = None,
        max_parallel: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `RealWorld.drive`; `on_step` gets no frame, but z, from which V can draw it."""
        n = len(tracks)
        returns, lengths = np.full(n, np.nan), np.zeros(n, np.int64)
        waiting = iter(range(n) if episodes is None else episodes)
        noises: dict[int, tuple[int, np.ndarray]] = {}  # by track
        while batch := list(islice(waiting, min(self.num_envs, max_parallel or self.num_envs))):
            for track in {int(tracks[episode]) for episode in batch} - noises.keys():
                noises[track] = self._dream_noise(track)
            rows = batch + batch[:1] * (self.num_envs - len(batch))  # always a full batch
            starts, noise = zip(*(noises[int(tracks[episode])] for episode in rows))
            total, length, seen = self._dream(
                self.starts["mu"][[*starts]].astype(np.float32),
                self.starts["action"][[*starts]].astype(np.float32),
                parameters[rows].astype(np.float32),
                np.stack(noise, 1),
                on_step is not None,
            )
            returns[batch] = total.numpy()[: len(batch)]
            lengths[batch] = length.numpy()[: len(batch)]
            if on_step is not None:
                for episode, steps in zip(batch, np.moveaxis(seen.numpy(), 1, 0)):
                    self._report(on_step, episode, steps[: lengths[episode]])
        return returns, lengths

    def _report(self, on_step: Callable[[Step], None], episode: int, steps: np.ndarray) -> None:
        for step in steps:
            z, h, action, (reward, done) = np.split(step, np.cumsum((LATENT_DIM, HIDDEN_SIZE, ACTION_DIM)))
            on_step(Step(episode, None, z, h, action, float(reward), bool(done), None))

    def _dream_noise(self, track: int) -> tuple[int, np.ndarray]:
        """Where the dream of a track starts, and its noise for each step: uniform (32), normal (32), uniform (1)."""
        random = np.random.default_rng(track)
        start = int(random.integers(len(self.starts["mu"])))
        shape = (self.max_steps, LATENT_DIM)
        uniform, normal = random.random(shape), random.normal(size=shape)
        return start, np.concatenate([uniform, normal, random.random((self.max_steps, 1))], 1).astype(np.float32)


def make_real_world(models: tuple, num_envs: int, max_idle_steps: int) -> dict[str, RealWorld]:
    """What a worker of 05 works with; `models` is what `loading.get_weights` returns."""
    return {"real": RealWorld(*build_models(models), num_envs, max_idle_steps=max_idle_steps)}


def make_dream_world(
    models: tuple,
    starts: dict,
    dream_envs: int,
    temperature: float,
    max_dream_steps: int,
    num_envs: int,
    max_idle_steps: int,
) -> dict[str, DreamWorld | RealWorld]:
    """What a worker of 07 works with: the dream to learn in, and the real world to see how far that carries."""
    _, rnn = build_models(models)  # an M of its own: the dream casts it, the real world does not
    dream = DreamWorld(rnn, starts, dream_envs, temperature, max_dream_steps, max_idle_steps)
    return {"dream": dream, **make_real_world(models, num_envs, max_idle_steps)}
