"""M, the memory: an LSTM that predicts the next z as a mixture of Gaussians, with the reward and the end.

The paper's MDN-RNN (Ha & Schmidhuber 2018, section 2.2 and appendix A.2), 422,368 parameters, and beside it a done
head, as the paper has for Doom, and a reward head, as the tutorial has: the dream needs both.

    [z 32, action 3] ─ LSTM 256 ─ h ─┬─ dense 480: logits, mu, log sigma of 5 Gaussians for each of the 32 latents
                                     ├─ dense 1: the expected reward
                                     └─ dense 1: the end of the episode, as a logit

Knows neither frames nor the game.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

from models.sizes import ACTION_DIM, HIDDEN_SIZE, LATENT_DIM, MIXTURES
from models.vae import dtype_policy, reparameterize
from pipeline.files import suppress_stderr
from pipeline.training import EpochMeans

import numpy as np

with suppress_stderr():  # TensorFlow's notices on what it was built for
    import keras
    import tensorflow as tf

State = tuple[tf.Tensor, tf.Tensor]  # h and c of the LSTM, (n, 256) each


class Prediction(NamedTuple):
    """What M expects after a (z, action). The leading dimensions are those of the input."""

    logits: tf.Tensor  # (…, 32, 5) of the mixture's weights
    mu: tf.Tensor  # (…, 32, 5)
    log_sigma: tf.Tensor  # (…, 32, 5)
    reward: tf.Tensor  # (…) its mean
    done: tf.Tensor  # (…) the logit of its probability


class MDNRNN(keras.Model):
    """M. Its weights exist as soon as it is made. Everything that enters and leaves is float32.

    `fit` and `evaluate` take batches of sequences, each a dict as `batch_spec` says: mu and logvar (n, T+1, 32) of z,
    and action (n, T, 3), reward, done and mask (n, T), where mask is 0 on padding; and the seed (2,) of the noise in z.
    """

    batch_spec = {  # noqa: RUF012
        "mu": tf.TensorSpec((None, None, LATENT_DIM), tf.float32),
        "logvar": tf.TensorSpec((None, None, LATENT_DIM), tf.float32),
        "action": tf.TensorSpec((None, None, ACTION_DIM), tf.float32),
        "reward": tf.TensorSpec((None, None), tf.float32),
        "done": tf.TensorSpec((None, None), tf.float32),
        "mask": tf.TensorSpec((None, None), tf.float32),
        "seed": tf.TensorSpec((2,), tf.int32),
    }

    def __init__(self) -> None:
        super().__init__(name="rnn", dtype="float32")
        self.lstm = keras.layers.LSTM(HIDDEN_SIZE, return_sequences=True, name="lstm", dtype="float32")
        self.mixture = keras.layers.Dense(3 * LATENT_DIM * MIXTURES, name="mixture", dtype="float32")
        self.reward = keras.layers.Dense(1, name="reward", dtype="float32")
        self.done = keras.layers.Dense(1, name="done", dtype="float32")
        self._inference_kernels: dict[str, tf.Tensor] = {}
        self(tf.zeros((1, 1, LATENT_DIM)), tf.zeros((1, 1, ACTION_DIM)))  # makes the weights

    def initial_state(self, n: int) -> State:
        """The state of `n` cars before their first frame: zeros."""
        return tf.zeros((n, HIDDEN_SIZE)), tf.zeros((n, HIDDEN_SIZE))

    def call(self, z: tf.Tensor, action: tf.Tensor) -> Prediction:
        """Sequences, each from a zero state, for training: z (n, T, 32), action (n, T, 3) to a (n, T, …) `Prediction`.

        The same as T calls of `step`, each with the given z and action.
        """
        h = self.lstm(tf.concat([z, action], -1))
        return self._heads(h, self.mixture(h))

    def step(self, z: tf.Tensor, action: tf.Tensor, state: State) -> tuple[Prediction, State]:
        """One frame of n cars: z (n, 32), action (n, 3) and the state before it to M's prediction and the new state."""
        state = self.update_state(z, action, state)
        return self.predict_next(state[0]), state

    def update_state(self, z: tf.Tensor, action: tf.Tensor, state: State) -> State:
        """The LSTM alone, where only h is needed: in the real world C looks at h, and nothing is predicted."""
        h, c = state
        cell = self.lstm.cell
        if self._inference_kernels:
            gates = matmul_bf16(tf.concat([z, action, h], -1), self._inference_kernels["lstm"])
        else:
            gates = tf.matmul(tf.concat([z, action], -1), cell.kernel) + tf.matmul(h, cell.recurrent_kernel)
        # Keras's LSTM cell written out, for one product in bfloat16; a test compares it with the layer.
        i, f, g, o = tf.split(gates + cell.bias, 4, -1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        return tf.sigmoid(o) * tf.tanh(c), c

    def predict_next(self, h: tf.Tensor) -> Prediction:
        """What M expects next, from its h (n, 256) after a (z, action)."""
        if self._inference_kernels:
            return self._heads(h, matmul_bf16(h, self._inference_kernels["mixture"]) + self.mixture.bias)
        return self._heads(h, self.mixture(h))

    def _heads(self, h: tf.Tensor, mixture: tf.Tensor) -> Prediction:
        shape = tf.concat([tf.shape(h)[:-1], (LATENT_DIM, MIXTURES)], 0)
        logits, mu, log_sigma = (tf.reshape(part, shape) for part in tf.split(mixture, 3, -1))
        return Prediction(logits, mu, log_sigma, self.reward(h)[..., 0], self.done(h)[..., 0])

    def unroll(self, z: tf.Tensor, action: tf.Tensor) -> list[State]:
        """M along sequences z (n, T, 32) and action (n, T, 3): its state before each frame and after the last, T+1."""
        states = [self.initial_state(z.shape[0])]
        for t in range(z.shape[1]):
            states.append(self.update_state(z[:, t], action[:, t], states[-1]))
        return states

    def open_loop(
        self, z: tf.Tensor, action: np.ndarray, state: State, temperature: float, random: np.random.Generator
    ) -> np.ndarray:
        """M's dream of n episodes whose actions (n, T, 3) are given: from z (n, 32) and the state on.

        Returns z (n, T+1, 32), the first one as given.
        """
        zs = [np.asarray(z)]
        for t in range(action.shape[1]):
            prediction, state = self.step(zs[-1], action[:, t], state)
            noise = random.random(zs[0].shape, np.float32), random.standard_normal(zs[0].shape, np.float32)
            zs.append(self.sample(prediction, temperature, noise).numpy())
        return np.stack(zs, 1)

    def sample(self, prediction: Prediction, temperature: tf.Tensor | float, noise: tuple) -> tf.Tensor:
        """A next z (n, 32) drawn from a `Prediction` for n cars.

        `noise` is (uniform in [0, 1), standard normal), (n, 32) each: the caller decides who shares it. The
        `temperature` τ makes the dream more or less certain (paper, section 4.3; Ha & Eck 2017, eq. 8): mixture
        weights softmax(logits / τ), variances sigma² · τ.
        """
        uniform, normal = noise
        # The Gaussian in whose share of the cumulative weights `uniform` falls. Five whole (n, 32) arrays one after
        # the other: three times as fast as the same along a last axis of five.
        logits = [part / temperature for part in tf.unstack(prediction.logits, axis=-1)]
        mus, log_sigmas = tf.unstack(prediction.mu, axis=-1), tf.unstack(prediction.log_sigma, axis=-1)
        top = functools.reduce(tf.maximum, logits)
        cumulative = list(itertools.accumulate(tf.exp(part - top) for part in logits))
        threshold = uniform * cumulative[-1]
        mu, log_sigma = mus[-1], log_sigmas[-1]
        for k in range(MIXTURES - 2, -1, -1):
            chosen = threshold < cumulative[k]
            mu, log_sigma = tf.where(chosen, mus[k], mu), tf.where(chosen, log_sigmas[k], log_sigma)
        return mu + tf.exp(log_sigma) * tf.sqrt(temperature) * normal

    def cast_for_inference(self) -> None:
        """For dreams: `step`, `update_state` and `predict_next` use a bfloat16 copy of the weights where that is fast.

        Call it once after the weights are loaded and before a `tf.function` is traced. Twice as fast where the
        processor has bfloat16 (and nothing changes elsewhere); h differs by about 0.002.
        """
        if dtype_policy() == "mixed_bfloat16":
            cell = self.lstm.cell
            kernel = tf.concat([cell.kernel, cell.recurrent_kernel], 0)
            self._inference_kernels = {
                "lstm": tf.cast(kernel, tf.bfloat16),
                "mixture": tf.cast(self.mixture.kernel, tf.bfloat16),
            }

    def compile(
        self, optimizer: keras.optimizers.Optimizer, active: np.ndarray, z_noise: float = 1.0, min_reward: float = -1.0
    ) -> None:
        """Prepare `fit`.

        `active` (32,) says over which latents the metric `nll` is a mean; `z_noise` and `min_reward` see `noisy_z` and
        `loss_terms`.
        """
        super().compile(optimizer, jit_compile=False)
        self.active, self.z_noise, self.min_reward = np.asarray(active, np.float32), z_noise, min_reward
        self.means = EpochMeans("loss", "nll", "reward_error", "done_nll")

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What `fit` resets at the start of each epoch."""
        return self.means.metrics

    def noisy_z(self, mu: tf.Tensor, logvar: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The z (n, T, 32) that M learns on: V's mean and `z_noise` of V's spread around it, fresh for every seed."""
        return reparameterize(mu, logvar, self.z_noise * tf.random.stateless_normal(tf.shape(mu), seed))

    def loss_terms(self, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Means over the frames in the mask, in nats: of the next z, latent by latent (32,), the reward, and the end.

        The reward's half squared error is the likelihood of a Gaussian of width 1, so M predicts the mean of the
        reward, clipped at `min_reward`. The −100 for leaving the field would drown the rest.
        """
        z = self.noisy_z(batch["mu"], batch["logvar"], batch["seed"])
        prediction = self(z[:, :-1], batch["action"])
        nll = negative_log_likelihood(prediction, z[:, 1:])
        reward_nll = tf.square(prediction.reward - tf.maximum(batch["reward"], self.min_reward)) / 2
        done_nll = tf.nn.sigmoid_cross_entropy_with_logits(batch["done"], prediction.done)
        frames = tf.maximum(tf.reduce_sum(batch["mask"]), 1)
        mean = [tf.tensordot(batch["mask"], each, [[0, 1], [0, 1]]) / frames for each in (nll, reward_nll, done_nll)]
        return mean[0], mean[1], mean[2]

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of gradient descent; returns the means over the epoch so far."""
        with tf.GradientTape() as tape:
            terms = self.loss_terms(batch)
            loss = tf.reduce_sum(terms[0]) + terms[1] + terms[2]
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return self._update_means(batch, terms)

    def test_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The same terms without learning."""
        return self._update_means(batch, self.loss_terms(batch))

    def _update_means(self, batch: dict[str, tf.Tensor], terms: tuple[tf.Tensor, ...]) -> dict[str, Any]:
        nll, reward_nll, done_nll = terms
        active_nll = tf.tensordot(nll, self.active, 1) / tf.reduce_sum(self.active)
        values = tf.reduce_sum(nll) + reward_nll + done_nll, active_nll, 2 * reward_nll, done_nll
        return self.means.update(*values, weight=tf.reduce_sum(batch["mask"]))


def matmul_bf16(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """The float32 product of x, float32 (n, k), with a bfloat16 matrix (k, m)."""
    return tf.cast(tf.matmul(tf.cast(x, matrix.dtype), matrix), tf.float32)


def negative_log_likelihood(prediction: Prediction, z: tf.Tensor) -> tf.Tensor:
    """−log p(z) in nats under the predicted mixtures, each latent by itself: the shape of `z` (…, 32).

    Bishop 1994, eq. 26, for one-dimensional Gaussians: −log Σₖ weightₖ N(z; muₖ, sigmaₖ), summed as exponentials of
    logarithms so that nothing underflows.
    """
    distance = (z[..., None] - prediction.mu) * tf.exp(-prediction.log_sigma)
    log_normal = -(tf.square(distance) + math.log(2 * math.pi)) / 2 - prediction.log_sigma
    return -tf.reduce_logsumexp(tf.nn.log_softmax(prediction.logits) + log_normal, -1)
