"""V against independent computations in NumPy."""

from models import vae, weights
from models.vae import VAE
from pipeline.files import suppress_stderr

import h5py
import numpy as np
import pytest

with suppress_stderr():
    import tensorflow as tf


@pytest.fixture(scope="module")
def model():
    return VAE("float32")


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(1).integers(0, 256, (64, 64, 64, 3), np.uint8)


def test_has_the_papers_parameters(model):
    assert model.count_params() == 4_348_547
    assert all(variable.dtype == "float32" for variable in VAE("mixed_bfloat16").weights)


def test_shapes_and_types(model, frames):
    mu, logvar = model.encode(frames[:3])
    assert mu.shape == logvar.shape == (3, 32)
    assert mu.dtype == logvar.dtype == tf.float32
    decoded = vae.to_uint8(model.decode(mu))
    assert decoded.shape == (3, 64, 64, 3)
    assert decoded.dtype == tf.uint8


def test_first_convolution_is_the_one_of_numpy(model, frames):
    """Pixels are divided by 255, the stride is 2 and nothing is padded."""
    kernel, bias = (np.asarray(variable, np.float64) for variable in model.convolutions[0].variables)
    corner = frames[0, 4:8, 6:10] / 255.0  # the window of output (2, 3)
    expected = np.maximum(np.einsum("ijc,ijcf->f", corner, kernel) + bias, 0)
    result = model.convolutions[0](frames[:1].astype(np.float32) / 255)[0, 2, 3]
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 0.02)])
def test_first_deconvolution_equals_keras(policy, tolerance):
    import keras

    layer = VAE(policy).deconvolutions[0]
    reference = keras.layers.Conv2DTranspose(128, 5, strides=2, activation="relu")
    pixel = np.random.default_rng(2).standard_normal((4, 1, 1, 1024)).astype(np.float32)
    reference.build(pixel.shape)
    layer.bias.assign(np.random.default_rng(3).standard_normal(128))
    reference.set_weights(layer.get_weights())
    np.testing.assert_allclose(tf.cast(layer(pixel), tf.float32), reference(pixel), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("batch", [32, 64])
def test_encoding_does_not_depend_on_the_place_in_the_batch(frames, policy, batch):
    model = VAE(policy)
    encode = tf.function(model.encode)
    mu, logvar = (np.asarray(part) for part in encode(frames[:batch]))
    order = np.random.default_rng(4).permutation(batch)
    shuffled_mu, shuffled_logvar = encode(frames[order])
    np.testing.assert_array_equal(shuffled_mu, mu[order])
    np.testing.assert_array_equal(shuffled_logvar, logvar[order])


def test_bfloat16_sees_the_same(model, frames):
    quick = VAE("mixed_bfloat16")
    quick.set_weights(model.get_weights())
    mu, quick_mu = model.encode(frames)[0], quick.encode(frames)[0]
    assert np.abs(mu - quick_mu).max() < 0.03 * np.abs(mu).max()


def test_precision_is_one_that_keras_knows_and_can_be_held_back(monkeypatch):
    assert vae.dtype_policy() in ("float32", "mixed_bfloat16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert vae.dtype_policy() == "float32"
    assert VAE().compute_dtype == "float32"


def test_kl_is_the_closed_form_and_the_monte_carlo_one():
    random = np.random.default_rng(5)
    mu, logvar = random.normal(0, 2, (50, 32)), random.normal(-1, 1.5, (50, 32))
    sigma = np.exp(logvar / 2)
    expected = -np.log(sigma) + (sigma**2 + mu**2) / 2 - 0.5
    result = np.asarray(vae.kl_divergence(mu.astype(np.float32), logvar.astype(np.float32)))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)

    z = mu[0] + sigma[0] * random.standard_normal((200_000, 32))
    log_ratio = (z**2 - ((z - mu[0]) / sigma[0]) ** 2) / 2 - np.log(sigma[0])
    np.testing.assert_allclose(log_ratio.mean(0), result[0], rtol=0.03, atol=0.03)


def test_sample_and_squared_error(frames):
    mu, logvar, noise = np.random.default_rng(6).standard_normal((3, 4, 32)).astype(np.float32)
    np.testing.assert_allclose(vae.reparameterize(mu, logvar, noise), mu + np.sqrt(np.exp(logvar)) * noise, rtol=1e-5)
    pictures = np.random.default_rng(7).random((4, 64, 64, 3), np.float32)
    expected = [((picture - frame / 255.0) ** 2).sum() for picture, frame in zip(pictures, frames)]
    np.testing.assert_allclose(vae.squared_error(frames[:4], pictures), expected, rtol=1e-4)


def test_weights_survive_disk_without_the_optimizer(tmp_path, frames):
    import keras

    model = VAE()
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    path = tmp_path / "vae.weights.h5"
    weights.save(path, model)
    with h5py.File(path) as file:
        names = []
        file.visit(names.append)
        total = sum(file[name].size for name in names if isinstance(file[name], h5py.Dataset))
    assert total == 4_348_547
    other = VAE()
    assert weights.fingerprint(other.get_weights()) != weights.fingerprint(model.get_weights())
    weights.load(path, other)
    assert weights.fingerprint(other.get_weights()) == weights.fingerprint(model.get_weights())
    np.testing.assert_array_equal(other.encode(frames)[0], model.encode(frames)[0])


def test_loss_terms_are_the_ones_of_numpy(frames):
    """The squared error is summed over the image; the KL is summed over the latents before the tolerance counts."""
    import keras

    model = VAE("float32")
    model.set_weights([3 * array for array in model.get_weights()])  # so that the KL is on both sides of the tolerance
    seed = tf.constant((3, 4))
    mu, logvar = (np.asarray(part, np.float64) for part in model.encode(frames[:8]))
    noise = np.asarray(tf.random.stateless_normal((8, 32), seed), np.float64)
    z = (mu + np.exp(logvar / 2) * noise).astype(np.float32)
    error = ((np.asarray(model.decode(z), np.float64) - frames[:8] / 255.0) ** 2).sum((1, 2, 3))
    kl = ((mu**2 + np.exp(logvar) - 1 - logvar) / 2).sum(1)
    tolerance = float(np.median(kl)) / 32
    model.compile(keras.optimizers.Adam(), tolerance)
    expected = error + np.maximum(kl, 32 * tolerance)
    assert (kl < 32 * tolerance).any()
    assert (kl > 32 * tolerance).any()
    for term, value in zip(model.loss_terms(frames[:8], seed), (expected, error, kl)):
        np.testing.assert_allclose(term, value, rtol=1e-4)


def test_a_step_of_training_is_a_step_of_gradient_descent(frames):
    import keras

    model = VAE("float32")
    model.compile(keras.optimizers.SGD(1e-4), kl_tolerance=0.0)
    batch = (frames[:4], tf.constant((1, 2)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model.loss_terms(*batch)[0])
    bias = model.deconvolutions[-1].bias
    expected = bias - 1e-4 * tape.gradient(loss, bias)
    logs = model.train_step(batch)
    np.testing.assert_allclose(bias, expected, rtol=1e-4)
    assert float(logs["loss"]) == pytest.approx(float(loss), rel=1e-5)
    before = [array.copy() for array in model.get_weights()]
    model.test_step(batch)
    for array, expected in zip(model.get_weights(), before):
        np.testing.assert_array_equal(array, expected)
