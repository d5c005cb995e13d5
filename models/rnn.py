"""M, the memory: an LSTM that foretells the next z as a mixture of Gaussians, with the reward and the end.

The paper's MDN-RNN (Ha & Schmidhuber 2018, section 2.2 and appendix A.2), 422,368 parameters, and beside it a reward
head and a done head of one number each, which the dream needs (paper, section 4.1).

    [z 32, action 3] ─ LSTM 256 ─ h ─┬─ dense 480: logits, mu, log sigma of 5 Gaussians for each of the 32 latents
                                     ├─ dense 1: the reward to expect
                                     └─ dense 1: the end, as a logit

Knows neither frames nor the game.
"""

import functools
import itertools
import math
from typing import NamedTuple

from pipeline.files import suppress_stderr

with suppress_stderr():  # TensorFlow's notices on what it was built for
    import keras
    import tensorflow as tf

from models.vae import LATENTS, precision

ACTIONS = 3
UNITS = 256
GAUSSIANS = 5

State = tuple[tf.Tensor, tf.Tensor]  # h and c of the LSTM, (n, 256) each


class Prediction(NamedTuple):
    """What M expects after a (z, action). The leading dimensions are those of what it was asked with."""

    logits: tf.Tensor  # (…, 32, 5) of the mixture's weights
    mu: tf.Tensor  # (…, 32, 5)
    log_sigma: tf.Tensor  # (…, 32, 5)
    reward: tf.Tensor  # (…) its mean
    done: tf.Tensor  # (…) the logit of its probability


class MDNRNN(keras.Model):
    """M. Its weights are there as soon as it is made. Everything that enters and leaves is float32."""

    def __init__(self) -> None:
        super().__init__(name="rnn", dtype="float32")
        self.lstm = keras.layers.LSTM(UNITS, return_sequences=True, name="lstm", dtype="float32")
        self.mixture = keras.layers.Dense(3 * LATENTS * GAUSSIANS, name="mixture", dtype="float32")
        self.reward = keras.layers.Dense(1, name="reward", dtype="float32")
        self.done = keras.layers.Dense(1, name="done", dtype="float32")
        self._frozen = {}
        self(tf.zeros((1, 1, LATENTS)), tf.zeros((1, 1, ACTIONS)))  # makes the weights

    def initial_state(self, n: int) -> State:
        """The state of `n` cars before their first frame: zeros."""
        return tf.zeros((n, UNITS)), tf.zeros((n, UNITS))

    def call(self, z: tf.Tensor, action: tf.Tensor) -> Prediction:
        """Whole sequences from their start, for training: z (n, T, 32), action (n, T, 3) to a (n, T, …) `Prediction`.

        The same as T calls of `step`, each with the z and action that really came.
        """
        h = self.lstm(tf.concat([z, action], -1))
        return self._heads(h, self.mixture(h))

    def step(self, z: tf.Tensor, action: tf.Tensor, state: State) -> tuple[Prediction, State]:
        """One frame of n cars: from z (n, 32), action (n, 3) and the state before to what M expects, and the state."""
        state = self.advance(z, action, state)
        return self.expect(state[0]), state

    def advance(self, z: tf.Tensor, action: tf.Tensor, state: State) -> State:
        """The LSTM alone, for whoever only needs h: in the real world C looks at h, and nothing is foretold."""
        h, c = state
        cell = self.lstm.cell
        if self._frozen:
            gates = _product(tf.concat([z, action, h], -1), self._frozen["lstm"])
        else:
            gates = tf.matmul(tf.concat([z, action], -1), cell.kernel) + tf.matmul(h, cell.recurrent_kernel)
        enter, keep, new, leave = tf.split(gates + cell.bias, 4, -1)
        c = tf.sigmoid(keep) * c + tf.sigmoid(enter) * tf.tanh(new)
        return tf.sigmoid(leave) * tf.tanh(c), c

    def expect(self, h: tf.Tensor) -> Prediction:
        """What M expects next, from its h (n, 256) after a (z, action)."""
        if self._frozen:
            return self._heads(h, _product(h, self._frozen["mixture"]) + self.mixture.bias)
        return self._heads(h, self.mixture(h))

    def _heads(self, h: tf.Tensor, mixture: tf.Tensor) -> Prediction:
        shape = tf.concat([tf.shape(h)[:-1], (LATENTS, GAUSSIANS)], 0)
        parts = [tf.reshape(part, shape) for part in tf.split(mixture, 3, -1)]
        return Prediction(*parts, self.reward(h)[..., 0], self.done(h)[..., 0])

    def sample(self, prediction: Prediction, temperature: tf.Tensor | float, noise: tuple) -> tf.Tensor:
        """A next z (n, 32) drawn from a `Prediction` for n cars.

        `noise` is (uniform in [0, 1), standard normal), (n, 32) each: whoever calls decides who shares it. The
        `temperature` τ makes the dream more or less certain (paper, section 4.3; Ha & Eck 2017, eq. 8): mixture
        weights softmax(logits / τ), variances sigma² · τ.
        """
        uniform, normal = noise
        # The Gaussian in whose share of the cumulated weights `uniform` falls. Five whole (n, 32) arrays one after
        # the other: three times as fast as the same along a last axis of five.
        logits = [part / temperature for part in tf.unstack(prediction.logits, axis=-1)]
        mus, log_sigmas = tf.unstack(prediction.mu, axis=-1), tf.unstack(prediction.log_sigma, axis=-1)
        top = functools.reduce(tf.maximum, logits)
        cumulated = list(itertools.accumulate(tf.exp(part - top) for part in logits))
        threshold = uniform * cumulated[-1]
        mu, log_sigma = mus[-1], log_sigmas[-1]
        for k in range(GAUSSIANS - 2, -1, -1):
            chosen = threshold < cumulated[k]
            mu, log_sigma = tf.where(chosen, mus[k], mu), tf.where(chosen, log_sigmas[k], log_sigma)
        return mu + tf.exp(log_sigma) * tf.sqrt(temperature) * normal

    def freeze(self) -> None:
        """For driving: keep the weights as they are now for `step` and `advance`, in bfloat16 where that is quick.

        Call it once after the weights are loaded and before a `tf.function` is traced. Twice as fast where the
        processor has bfloat16 (and nothing changes elsewhere); h differs by about 0.002.
        """
        if precision() == "mixed_bfloat16":
            cell = self.lstm.cell
            kernel = tf.concat([cell.kernel, cell.recurrent_kernel], 0)
            self._frozen = {
                "lstm": tf.cast(kernel, tf.bfloat16),
                "mixture": tf.cast(self.mixture.kernel, tf.bfloat16),
            }


def _product(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.matmul(tf.cast(x, matrix.dtype), matrix), tf.float32)


def negative_log_likelihood(prediction: Prediction, z: tf.Tensor) -> tf.Tensor:
    """−log p(z) in nats under the predicted mixtures, each latent by itself: the shape of `z` (…, 32).

    Bishop 1994, eq. 26, for one-dimensional Gaussians: −log Σₖ weightₖ N(z; muₖ, sigmaₖ), summed as exponentials of
    logarithms so that nothing underflows.
    """
    distance = (z[..., None] - prediction.mu) * tf.exp(-prediction.log_sigma)
    log_normal = -(tf.square(distance) + math.log(2 * math.pi)) / 2 - prediction.log_sigma
    return -tf.reduce_logsumexp(tf.nn.log_softmax(prediction.logits) + log_normal, -1)
