"""V, the vision: a variational autoencoder that turns a 64×64 picture into 32 numbers z, and z into a picture.

Exactly the paper's (Ha & Schmidhuber 2018, appendix A.1): 4,348,547 parameters.

    picture 64×64×3 ─ conv 32, 64, 128, 256 (k4 s2 relu) ─ 1024 ─┬─ dense 32: mu
                                                                 └─ dense 32: logvar = log(sigma²)
    z = mu + sigma · noise ─ dense 1024 ─ deconv 128 k5, 64 k5, 32 k6 (s2 relu), 3 k6 (s2 sigmoid) ─ picture

Knows neither files nor the game.
"""

import os
from pathlib import Path

from pipeline.files import suppress_stderr

with suppress_stderr():  # TensorFlow's notices on what it was built for
    import keras
    import tensorflow as tf

PICTURE = (64, 64, 3)
LATENTS = 32


def precision() -> str:
    """The Keras precision in which V is quick here: `mixed_bfloat16` where the processor has it, else `float32`.

    With AMX or AVX-512 BF16 the encoder is three times as fast (a processor without them would emulate it, slowly).
    The weights are float32 in memory and on disk either way, so files go from one computer to another.
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
    """V. Its weights are there as soon as it is made.

    `policy` is the precision of the convolutions, by default what `precision` says. What leaves V is float32 (or
    uint8) in any case.
    """

    def __init__(self, policy: str | None = None) -> None:
        policy = policy or precision()
        super().__init__(name="vae", dtype=policy)
        options = {"strides": 2, "activation": "relu", "dtype": policy}
        self.convolutions = [
            keras.layers.Conv2D(filters, 4, name=f"conv_{filters}", **options) for filters in (32, 64, 128, 256)
        ]
        self.mu = keras.layers.Dense(LATENTS, name="mu", dtype="float32")
        self.logvar = keras.layers.Dense(LATENTS, name="logvar", dtype="float32")

        self.dense = keras.layers.Dense(1024, name="dense", dtype=policy)
        self.deconvolutions = [
            DeconvolutionOfOnePixel(128, 5, name="deconv_128", activation="relu", dtype=policy),
            keras.layers.Conv2DTranspose(64, 5, name="deconv_64", strides=2, activation="relu", dtype=policy),
            keras.layers.Conv2DTranspose(32, 6, name="deconv_32", strides=2, activation="relu", dtype=policy),
            keras.layers.Conv2DTranspose(3, 6, name="deconv_3", strides=2, dtype=policy),
        ]
        self(tf.zeros((1, *PICTURE), tf.uint8))  # makes the weights

    def encode(self, frames: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Frames uint8 (n, 64, 64, 3) to mu and logvar, float32 (n, 32) each: z is N(mu, exp(logvar))."""
        x = tf.cast(frames, self.compute_dtype) / 255
        for convolution in self.convolutions:
            x = convolution(x)
        x = tf.reshape(x, (-1, 1024))
        return self.mu(x), self.logvar(x)

    def picture(self, z: tf.Tensor) -> tf.Tensor:
        """The picture that V sees in each z (n, 32): float32 (n, 64, 64, 3) from 0 to 1. This one has a gradient."""
        x = tf.reshape(self.dense(z), (-1, 1, 1, 1024))
        for deconvolution in self.deconvolutions:
            x = deconvolution(x)
        return tf.sigmoid(tf.cast(x, tf.float32))

    def decode(self, z: tf.Tensor) -> tf.Tensor:
        """The same as frames: uint8 (n, 64, 64, 3)."""
        return tf.cast(tf.round(255 * self.picture(z)), tf.uint8)

    def call(self, frames: tf.Tensor) -> tf.Tensor:
        """Frames to V's pictures of them, without noise: uint8 to float32 from 0 to 1, (n, 64, 64, 3) each."""
        mu, _ = self.encode(frames)
        return self.picture(mu)


class DeconvolutionOfOnePixel(keras.layers.Conv2DTranspose):
    """A transposed convolution whose input is one pixel: then it is its kernel times that pixel.

    The same weights and the same result; as a matrix product it is 18 times as fast, and V's training twice.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """(n, 1, 1, channels) to (n, k, k, filters)."""
        kernel = tf.reshape(self.kernel, (-1, inputs.shape[-1]))  # (k·k·filters, channels)
        x = tf.matmul(tf.reshape(inputs, (-1, inputs.shape[-1])), kernel, transpose_b=True)
        return self.activation(tf.reshape(x, (-1, *self.kernel_size, self.filters)) + self.bias)


def sample(mu: tf.Tensor, logvar: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """A z from N(mu, exp(logvar)), made of standard normal `noise` so that the gradient passes (all of one shape)."""
    return mu + tf.exp(logvar / 2) * noise


def kl(mu: tf.Tensor, logvar: tf.Tensor) -> tf.Tensor:
    """KL divergence in nats of N(mu, exp(logvar)) from N(0, 1), each latent by itself: same shape as `mu`.

    Kingma & Welling 2014, appendix B: ½ (mu² + sigma² − 1 − log sigma²).
    """
    return (tf.square(mu) + tf.exp(logvar) - 1 - logvar) / 2


def squared_error(frames: tf.Tensor, pictures: tf.Tensor) -> tf.Tensor:
    """The squared error of each picture (0 to 1) to its frame (uint8), summed over pixels and colours: (n,)."""
    difference = pictures - tf.cast(frames, tf.float32) / 255
    return tf.reduce_sum(tf.square(difference), (1, 2, 3))
