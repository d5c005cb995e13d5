"""V, the vision: a variational autoencoder that turns a 64×64 image into 32 numbers z, and z into an image.

Exactly the paper's (Ha & Schmidhuber 2018, appendix A.1): 4,348,547 parameters.

    image 64×64×3 ─ conv 32, 64, 128, 256 (k4 s2 relu) ─ 1024 ─┬─ dense 32: mu
                                                               └─ dense 32: logvar = log(sigma²)
    z = mu + sigma · noise ─ dense 1024 ─ deconv 128 k5, 64 k5, 32 k6 (s2 relu), 3 k6 (s2 sigmoid) ─ image

Knows neither files nor the game.
"""

import os
from pathlib import Path

from models.sizes import IMAGE_SHAPE, LATENT_DIM
from pipeline.files import suppress_stderr
from pipeline.training import EpochMeans

with suppress_stderr():  # TensorFlow's notices on what it was built for
    import keras
    import tensorflow as tf


def dtype_policy() -> str:
    """The Keras dtype policy in which V is fast here: `mixed_bfloat16` where the processor has it, else `float32`.

    With AMX or AVX-512 BF16 the encoder is two to three times as fast (a processor without them would emulate it,
    slowly). The weights are float32 in memory and on disk either way, so files go from one computer to another.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # no Linux
        return "float32"
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()  # oneDNN does the convolutions: it may be held back
    held_back = allowed.startswith(("SSE", "AVX2")) or allowed in ("AVX", "AVX512_CORE", "AVX512_CORE_VNNI")
    if held_back or os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0":
        return "float32"
    return "mixed_bfloat16" if {"amx_bf16", "avx512_bf16"} & set(flags) else "float32"


class VAE(keras.Model):
    """V. Its weights exist as soon as it is made.

    `policy` is the dtype policy of the convolutions, by default `dtype_policy()`. What leaves V is float32 in any case.

    `fit` and `evaluate` take batches of (frames uint8 (n, 64, 64, 3), seed int32 (2,)): the seed of the noise travels
    with the batch, so a resumed run draws the same noise.
    """

    batch_spec = (tf.TensorSpec((None, *IMAGE_SHAPE), tf.uint8), tf.TensorSpec((2,), tf.int32))

    def __init__(self, policy: str | None = None) -> None:
        policy = policy or dtype_policy()
        super().__init__(name="vae", dtype=policy)
        options = {"strides": 2, "activation": "relu", "dtype": policy}
        self.convolutions = [
            keras.layers.Conv2D(filters, 4, name=f"conv_{filters}", **options) for filters in (32, 64, 128, 256)
        ]
        self.mu = keras.layers.Dense(LATENT_DIM, name="mu", dtype="float32")
        self.logvar = keras.layers.Dense(LATENT_DIM, name="logvar", dtype="float32")

        self.dense = keras.layers.Dense(1024, name="dense", dtype=policy)
        self.deconvolutions = [
            Conv2DTransposeFrom1x1(128, 5, name="deconv_128", activation="relu", dtype=policy),
            keras.layers.Conv2DTranspose(64, 5, name="deconv_64", strides=2, activation="relu", dtype=policy),
            keras.layers.Conv2DTranspose(32, 6, name="deconv_32", strides=2, activation="relu", dtype=policy),
            keras.layers.Conv2DTranspose(3, 6, name="deconv_3", strides=2, dtype=policy),
        ]
        self(tf.zeros((1, *IMAGE_SHAPE), tf.uint8))  # makes the weights

    def encode(self, frames: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Frames uint8 (n, 64, 64, 3) to mu and logvar, float32 (n, 32) each: z is N(mu, exp(logvar))."""
        x = self.convolve(frames)
        return self.mu(x), self.logvar(x)

    def convolve(self, frames: tf.Tensor) -> tf.Tensor:
        """Frames uint8 (n, 64, 64, 3) to what the convolutions make of them, (n, 1024)."""
        x = tf.cast(frames, self.compute_dtype) / 255
        for convolution in self.convolutions:
            x = convolution(x)
        return tf.reshape(x, (-1, 1024))

    def decode(self, z: tf.Tensor) -> tf.Tensor:
        """The image of each z (n, 32): float32 (n, 64, 64, 3) from 0 to 1."""
        x = tf.reshape(self.dense(z), (-1, 1, 1, 1024))
        for deconvolution in self.deconvolutions:
            x = deconvolution(x)
        return tf.sigmoid(tf.cast(x, tf.float32))

    def call(self, frames: tf.Tensor) -> tf.Tensor:
        """Frames to their reconstructions, without noise: uint8 to float32 from 0 to 1, (n, 64, 64, 3) each."""
        mu, _ = self.encode(frames)
        return self.decode(mu)

    def compile(self, optimizer: keras.optimizers.Optimizer, kl_tolerance: float = 0.5) -> None:
        """`kl_tolerance`, in nats a latent, is how much KL divergence costs nothing (see `loss_terms`)."""
        super().compile(optimizer, jit_compile=False)  # XLA would halve the speed on a CPU
        self.kl_tolerance = kl_tolerance
        self.means = EpochMeans("loss", "squared_error", "kl")

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What `fit` resets at the start of each epoch."""
        return self.means.metrics

    def loss_terms(self, frames: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Of each frame (n,): the loss, the squared error of its reconstruction, and the KL divergence in nats.

        The loss is the paper's: squared error summed over the image, plus the KL divergence summed over the latents,
        which counts as no less than `kl_tolerance` times their number. So the KL term cannot collapse useful latents.
        """
        mu, logvar = self.encode(frames)
        z = reparameterize(mu, logvar, tf.random.stateless_normal(tf.shape(mu), seed))
        error = squared_error(frames, self.decode(z))
        kl = tf.reduce_sum(kl_divergence(mu, logvar), -1)
        return error + tf.maximum(kl, self.kl_tolerance * LATENT_DIM), error, kl

    def train_step(self, batch: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of gradient descent; returns the means over the epoch so far."""
        with tf.GradientTape() as tape:
            terms = self.loss_terms(*batch)
            loss = tf.reduce_mean(terms[0])
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return self.means.update(*terms)

    def test_step(self, batch: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The same terms without learning."""
        return self.means.update(*self.loss_terms(*batch))


class Conv2DTransposeFrom1x1(keras.layers.Conv2DTranspose):  # Keras writes this name into weights files
    """A transposed convolution whose input is one pixel: then it is its kernel times that pixel.

    The same weights and the same result; as a matrix product it is 18 times as fast, and V's training twice.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """(n, 1, 1, channels) to (n, k, k, filters)."""
        kernel = tf.reshape(self.kernel, (-1, inputs.shape[-1]))  # (k·k·filters, channels)
        x = tf.matmul(tf.reshape(inputs, (-1, inputs.shape[-1])), kernel, transpose_b=True)
        return self.activation(tf.reshape(x, (-1, *self.kernel_size, self.filters)) + self.bias)


def to_uint8(images: tf.Tensor) -> tf.Tensor:
    """Images from 0 to 1 as frames: float32 to uint8, the same shape."""
    return tf.cast(tf.round(255 * images), tf.uint8)


def reparameterize(mu: tf.Tensor, logvar: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """A z from N(mu, exp(logvar)), made of standard normal `noise` so that the gradient passes (all of one shape).

    Kingma & Welling 2014, section 2.4.
    """
    return mu + tf.exp(logvar / 2) * noise


def kl_divergence(mu: tf.Tensor, logvar: tf.Tensor) -> tf.Tensor:
    """KL divergence in nats of N(mu, exp(logvar)) from N(0, 1), each latent by itself: same shape as `mu`.

    Kingma & Welling 2014, appendix B: ½ (mu² + sigma² − 1 − log sigma²).
    """
    return (tf.square(mu) + tf.exp(logvar) - 1 - logvar) / 2


def squared_error(frames: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """The squared error of each image (0 to 1) to its frame (uint8), summed over pixels and colours: (n,)."""
    difference = images - tf.cast(frames, tf.float32) / 255
    return tf.reduce_sum(tf.square(difference), (1, 2, 3))
